"""The bodies of POST /v1/responses and its two neighbours: fields, input items and tools."""
