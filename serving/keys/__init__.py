"""API keys: who may come in, and as whom."""
