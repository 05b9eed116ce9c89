"""Granite 3: an array of JSON calls after <|tool_call|>. Granite 4 calls as Hermes does."""

from .json_block import JsonBlockFormat

GRANITE = JsonBlockFormat(begin="<|tool_call|>", more_markers=("<tool_call>",), is_array=True)
