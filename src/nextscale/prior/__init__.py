"""Transformers that predict tokens, or the noise in features."""
