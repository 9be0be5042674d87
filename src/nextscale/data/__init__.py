"""Real images on their way into training."""
