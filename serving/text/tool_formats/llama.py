"""Llama 3: the answer is a JSON object with "name" and "parameters", or stands after <|python_tag|>."""

from .bare_json import BareJsonFormat

LLAMA = BareJsonFormat(markers=("<|python_tag|>",), arguments_key="parameters")
