"""The request bodies of LM Studio's native API."""
