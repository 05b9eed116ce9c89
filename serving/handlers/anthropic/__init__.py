"""Anthropic's messages: requests to turns of the assistant, and turns to message objects and event streams."""
