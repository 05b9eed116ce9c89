"""How many messages, parts and tools one request may have: more than any agent sends, less than what hurts others."""

MAX_MESSAGES = 10_000
"""Messages of a chat, or items of a response's input."""
MAX_PARTS = 2048
"""Parts of one message."""
MAX_TOOLS = 1024
"""OpenAI's limit of functions is 128; agents with many servers of tools go beyond it."""
