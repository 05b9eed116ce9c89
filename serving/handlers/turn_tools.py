"""What a turn may call: the tools offered to the model, the parser of its calls, the grammar that holds it to them."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ApiError
from ..text.chat_template import ChatTemplate
from ..text.output_format import ANYTHING, Grammar
from ..text.pieces import PieceParser, PlainParser
from ..text.reasoning import ThinkParser
from ..text.schema_form import check_form, walk
from ..text.tool_formats.format import CallGrammar, ToolFormat
from ..text.tool_formats.harmony import HarmonyFormat
from ..text.tool_formats.prompted import PROMPTED
from ..text.tool_formats.tokens import ControlTokens
from ..text.tools import Tool
from ..text.turn_grammar import (
    ThinkState,
    answer_grammar,
    calls_in_text_grammar,
    calls_or_answer_grammar,
    demanded_calls_grammar,
    harmony_frame,
    think_frame,
)
from .turn_types import TurnRequest


@dataclass(frozen=True, slots=True)
class TurnTools:
    """The tools of one request, in the way of its model."""

    request: TurnRequest
    template: ChatTemplate
    tokens: ControlTokens
    offered: tuple[Tool, ...]
    """What the prompt tells of."""
    callable: Mapping[str, Tool]
    """What may be called, by name."""

    @property
    def format(self) -> ToolFormat:
        """The model's."""
        return self.template.tool_format

    @property
    def max_calls(self) -> int:
        """0: no limit."""
        return 0 if self._many else 1

    @property
    def _many(self) -> bool:
        """Whether an answer may have several calls.

        A choice of one name asks for one call. Of a model that learned its form of calls from the prompt, a demand is
        for one too: held to calls and nothing else, such models repeat themselves up to the limit.
        """
        choice = self.request.tool_choice
        if choice.mode == "required" and (self.format is PROMPTED or len(choice.allowed or ()) == 1):
            return False
        return self.request.parallel_tool_calls

    def check_schemas(self) -> None:
        """Look at the schemas of the arguments: whatever is not well formed would mislead the model, and parsers.

        Raises:
            RequestError: invalid_json_schema, naming the tool's field.
        """
        for tool in self.offered:
            for node, path, _ in walk(dict(tool.parameters or {})):
                check_form(node, tool.param, path)

    def shown_tokens(self) -> frozenset[int]:
        """Control tokens that the parser must see."""
        markers: list[str] = []
        if self.callable or self._is_harmony:
            markers += self.format.control_tokens
        if (think := self.template.think_markers) is not None:
            markers += [think.open, think.close]
        ids = (self.tokens.id_of(marker) for marker in markers)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def parser(self, state: ThinkState) -> PieceParser:
        """A fresh parser for one choice."""
        if self._is_harmony:
            return self.format.parser(self.callable, self.tokens)
        rest = self.format.parser(self.callable, self.tokens) if self.callable else PlainParser()
        think = self.template.think_markers
        if think is None:
            return rest
        are_tokens = bool(self.tokens.among([think.open, think.close]))
        return ThinkParser(think, rest, starts_inside=state == "inside", are_tokens=are_tokens)

    def grammar(self, state: ThinkState) -> Grammar:
        """What the output is held to.

        Raises:
            RequestError: a schema or grammar of the request cannot be enforced.
        """
        wanted = self.request.output_format
        if self._is_harmony:
            frame = harmony_frame(self.tokens)
        else:
            frame = think_frame(self.template.think_markers, state, self.tokens)
        if not self.callable:
            return ANYTHING if wanted is None else Grammar(answer_grammar(wanted, frame), wanted.param)
        demanded = self.request.tool_choice.mode == "required"
        if not demanded and wanted is None and not self._holds_to_form:
            return ANYTHING
        tools = list(self.callable.values())
        calls = self.format.grammar(tools, self.tokens, many=self._many)

        def whole(calls: CallGrammar) -> str:
            if demanded:
                return demanded_calls_grammar(calls, frame, self.tokens)
            if wanted is not None:
                return calls_or_answer_grammar(calls, wanted, frame, self.tokens)
            return calls_in_text_grammar(calls, frame, self.tokens)

        param = "tools" if demanded or wanted is None else wanted.param
        loose = calls.loosened()
        return Grammar(whole(calls), param, calls.params, fallback=whole(loose) if loose is not None else "")

    @property
    def _is_harmony(self) -> bool:
        """Such answers are a row of messages, whether there are tools or not."""
        return isinstance(self.format, HarmonyFormat)

    @property
    def _holds_to_form(self) -> bool:
        """Whether calls beside free text are held to a grammar."""
        restricted = len(self.callable) < len(self.offered)
        return restricted or any(tool.strict or tool.format is not None for tool in self.callable.values())


def resolve_tools(request: TurnRequest, template: ChatTemplate, control_ids: Mapping[str, int]) -> TurnTools:
    """The tools of a request.

    Raises:
        ApiError: the tool choice names a tool that is not there, or demands a call where there is none to make.
    """
    choice = request.tool_choice
    offered = () if choice.mode == "none" else tuple(request.tools)
    by_name = {tool.name: tool for tool in offered}
    if choice.allowed is not None and choice.mode != "none":
        for name in choice.allowed:
            if name not in by_name:
                known = ", ".join(by_name) or "none"
                raise ApiError(
                    f"Invalid 'tool_choice': there is no tool '{name}'. Tools of this request: {known}.",
                    code="invalid_value",
                    param="tool_choice",
                )
        by_name = {name: tool for name, tool in by_name.items() if name in choice.allowed}
    if choice.mode == "required" and not by_name:
        raise ApiError(
            "Invalid 'tool_choice': it demands a call, but there are no tools. Send 'tools'.",
            code="invalid_value",
            param="tool_choice",
        )
    return TurnTools(request, template, ControlTokens(control_ids), offered, by_name)
