"""The messages of an Anthropic request and the blocks that they are made of."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, FailFast, Field, Tag, model_validator

from ..body import Refused, RequestBody, Tolerated, invalid
from ..counts import MAX_PARTS
from ..explain import preview

BLOCK: dict[str, Tolerated | Refused] = {
    "cache_control": Tolerated("Prefix caching is always on and needs no hint."),
    "caller": Tolerated("It describes an earlier answer."),
    "citations": Tolerated("They describe an earlier answer."),
    "toolset_name": Tolerated("It describes an earlier answer."),
}
"""For every block."""


class TextBlock(RequestBody):
    """A piece of text."""

    other_fields = BLOCK

    type: Literal["text"]
    text: str


class ThinkingBlock(RequestBody):
    """What the assistant has thought earlier."""

    other_fields = BLOCK | {"signature": Tolerated("Nobody else's thinking can harm a local model.")}

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(RequestBody):
    """Thinking that only Anthropic can read; the model is not shown it, as no client is."""

    other_fields = BLOCK

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(RequestBody):
    """A call that the assistant has made."""

    other_fields = BLOCK

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


def _block_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"({kind})" if kind in _KINDS else "(text)"


def _known(value: Any) -> Any:
    return _refuse_others(value, _KINDS)


def _only_text(value: Any) -> Any:
    return _refuse_others(value, ("text",))


def _refuse_others(value: Any, kinds: tuple[str, ...]) -> Any:
    kind = value.get("type", kinds[0]) if isinstance(value, dict) else kinds[0]
    if kind not in kinds:
        raise invalid(
            "unsupported_parameter",
            f"blocks of type {preview(kind)} are not understood here. Send: {', '.join(kinds)}.",
            "type",
        )
    return value


def _as_blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_KINDS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
_Texts = Annotated[list[Annotated[TextBlock, BeforeValidator(_only_text)]], Field(max_length=MAX_PARTS)]
Texts = Annotated[_Texts, FailFast(), BeforeValidator(_as_blocks, json_schema_input_type=str | _Texts)]
"""Text blocks; a string becomes one."""


class ToolResultBlock(RequestBody):
    """What a tool has answered."""

    other_fields = BLOCK

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = Field(default_factory=list)
    is_error: bool = False


Block = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[RedactedThinkingBlock, Tag("(redacted_thinking)")]
    | Annotated[ToolUseBlock, Tag("(tool_use)")]
    | Annotated[ToolResultBlock, Tag("(tool_result)")],
    Discriminator(_block_tag),
    BeforeValidator(_known),
]

_Blocks = Annotated[list[Block], Field(max_length=MAX_PARTS)]
_BLOCKS_OF = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


class InputMessage(RequestBody):
    """One message; `system` may stand anywhere among the others."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[_Blocks, FailFast(), BeforeValidator(_as_blocks, json_schema_input_type=str | _Blocks)]

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> "InputMessage":
        for index, block in enumerate(self.content):
            if not isinstance(block, _BLOCKS_OF[self.role]):
                raise invalid(
                    "invalid_value",
                    f"a {self.role} message cannot hold a {block.type} block. Move it to the role that wrote it.",
                    f"content.{index}",
                )
        return self
