"""Whole trainings and measurements: scaling, comparison of families."""
