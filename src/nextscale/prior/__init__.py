"""Transformers that predict tokens."""
