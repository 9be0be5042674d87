"""Training, resumable."""
