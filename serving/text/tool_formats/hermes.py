"""Hermes and Qwen 2.5 and 3: each call is a JSON object between <tool_call> and </tool_call>."""

from .json_block import JsonBlockFormat

HERMES = JsonBlockFormat(begin="<tool_call>", end="</tool_call>", padding="\n")
