"""The request bodies of Anthropic's messages API."""
