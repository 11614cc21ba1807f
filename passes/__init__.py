"""Declarative graph rewrites: one rule a file, joined in `pipeline`."""
