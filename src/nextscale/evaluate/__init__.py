"""Scores of models and of images."""
