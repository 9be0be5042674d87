"""Tokens and images from a prior and a tokenizer."""
