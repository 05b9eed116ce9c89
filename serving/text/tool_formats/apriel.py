"""Apriel: an array of JSON calls between <tool_calls> and </tool_calls>."""

from .json_block import JsonBlockFormat

APRIEL = JsonBlockFormat(begin="<tool_calls>", end="</tool_calls>", is_array=True)
