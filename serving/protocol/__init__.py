"""The request bodies of the HTTP API as pydantic models, and what becomes of every field a client may send."""
