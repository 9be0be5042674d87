"""Images over HTTP: one queue, batches of whatever is asked for, one model."""
