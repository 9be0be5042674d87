"""A page to play on, in the browser: optional, it needs gradio."""
