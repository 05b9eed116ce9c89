"""Nemotron: an array of JSON calls between <TOOLCALL> and </TOOLCALL>."""

from .json_block import JsonBlockFormat

NEMOTRON = JsonBlockFormat(begin="<TOOLCALL>", end="</TOOLCALL>", is_array=True)
