"""Learning masks by gradient.

The one part of the package whose modules import torch at their top, as they define modules
and functions of autograd: load them through `require`.
"""
