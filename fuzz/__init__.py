"""Damaged files for every reader: what hypothesis, atheris and the reliability table share."""
