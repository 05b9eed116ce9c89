"""Phi-4-mini: JSON calls between <|tool_call|> and <|/tool_call|>, in an array if its chat template is Microsoft's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..tools import Tool
from .custom_block import any_definition
from .format import Message
from .json_block import JsonBlockFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class PhiFormat(JsonBlockFormat):
    """See ToolFormat. Microsoft's chat template finds the tools as JSON text in `tools` of the system message."""

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat."""
        adapted = JsonBlockFormat.adapt(self, messages, tools)
        if not tools or self.reads_tools:
            return adapted
        if not adapted or adapted[0]["role"] not in ("system", "developer"):
            adapted.insert(0, {"role": "system", "content": "You are a helpful assistant with some tools."})
        functions = [any_definition(tool)["function"] for tool in tools]
        adapted[0] = adapted[0] | {"tools": json.dumps(functions, ensure_ascii=False)}
        return adapted


def phi_format(*, reads_tools: bool) -> PhiFormat:
    """The format of one of the family's chat templates."""
    return PhiFormat(begin="<|tool_call|>", end="<|/tool_call|>", is_array=not reads_tools, reads_tools=reads_tools)
