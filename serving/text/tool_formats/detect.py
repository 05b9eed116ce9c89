"""Finds a model's tool format by what its chat template writes."""

from .apriel import APRIEL
from .deepseek import DeepSeekFormat
from .format import ToolFormat
from .granite import GRANITE
from .harmony import HARMONY
from .hermes import HERMES
from .llama import LLAMA
from .mistral import MistralFormat
from .nemotron import NEMOTRON
from .phi import phi_format
from .plain_json import PLAIN_JSON
from .prompted import PROMPTED
from .qwen_coder import QwenCoderFormat


def detect_tool_format(template: str, *, reads_tools: bool) -> ToolFormat:
    """The format of a chat template.

    Args:
        template: its source.
        reads_tools: whether it reads the variable `tools`.
    """
    if "<|channel|>" in template and "<|message|>" in template:
        return HARMONY
    if "<|tool|>" in template and "<|/tool|>" in template:
        return phi_format(reads_tools=reads_tools)
    if "\uff5ctool\u2581call\u2581begin\uff5c" in template:
        return DeepSeekFormat(fenced="```json" in template, reads_tools=reads_tools)
    if not reads_tools:
        return PROMPTED
    if "[TOOL_CALLS]" in template:
        return MistralFormat(names_first="[ARGS]" in template)
    if "<function=" in template and "<parameter=" in template:
        return QwenCoderFormat()
    if "<TOOLCALL>" in template:
        return NEMOTRON
    if "<tool_calls>" in template:
        return APRIEL
    if "<tool_call>" in template:
        return HERMES
    if "<|tool_call|>" in template:
        return GRANITE
    if "<|python_tag|>" in template or "<|eom_id|>" in template or '"parameters"' in template:
        return LLAMA
    return PLAIN_JSON
