"""Puts the grammar of a whole answer together: thinking first, then calls, free text, or text of a given form.

Calls can be demanded, or allowed beside text, which is free until a marker begins a call that is held to its form.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from .output_format import OutputFormat, grammar_of, join_grammars, lark_rule
from .reasoning import ThinkMarkers
from .tool_formats import harmony
from .tool_formats.format import CallGrammar, lark_until
from .tool_formats.tokens import ControlTokens

ThinkState = Literal["inside", "done", "free"]
"""Where the prompt leaves the model: within its thinking, after it, or before it with a choice."""


@dataclass(slots=True)
class Frame:
    """What stands around an answer."""

    prologue: str = ""
    """An expression for what may come before the answer or a call."""
    answer: str = ""
    """An expression for what must come directly before the answer's text."""
    rules: list[str] = field(default_factory=list)


def think_frame(markers: ThinkMarkers | None, state: ThinkState, tokens: ControlTokens) -> Frame:
    """Thinking between two markers."""
    if markers is None or state == "done":
        return Frame()
    close = tokens.lark(markers.close)
    if close.startswith("<"):
        rules = [f"thought: /(.|\\n)*/ {close}"]
    else:
        rules = [f"thought[lazy]: {lark_until(markers.close)}"]
    rules.append("gap: /\\n{0,2}/")
    opened = "thought gap" if state == "inside" else f"({tokens.lark(markers.open)} thought gap)?"
    return Frame(opened, "", rules)


def harmony_frame(tokens: ControlTokens) -> Frame:
    """Messages of thinking before a call or a final message."""
    start, channel, message, end = map(tokens.lark, (harmony.START, harmony.CHANNEL, harmony.MESSAGE, harmony.END))
    thought = f'thought: {channel} ("analysis" | "commentary") {message} /(.|\\n)*/ {end} {start} "assistant"'
    return Frame("thought*", f'{channel} "final" {message}', [thought])


def answer_grammar(output_format: OutputFormat, frame: Frame) -> str:
    """Text of the given form.

    Raises:
        RequestError: the form cannot be enforced.
    """
    if not frame.prologue and not frame.answer:
        return grammar_of(output_format)
    body, others = lark_rule(output_format, "answer")
    return _join(f"{frame.prologue} {frame.answer} answer", [*frame.rules, body], others)


def demanded_calls_grammar(calls: CallGrammar, frame: Frame, tokens: ControlTokens) -> str:
    """Nothing but calls, at least one."""
    return _join(f"{frame.prologue} {_calls(calls, tokens)}", [*frame.rules, *calls.rules], calls.others)


def calls_or_answer_grammar(
    calls: CallGrammar, output_format: OutputFormat, frame: Frame, tokens: ControlTokens
) -> str:
    """Calls, or text of the given form.

    Raises:
        RequestError: the form cannot be enforced.
    """
    body, others = lark_rule(output_format, "answer")
    either = f"{frame.prologue} ({_calls(calls, tokens)} | {frame.answer} answer)"
    return _join(either, [*frame.rules, *calls.rules, body], [*calls.others, *others])


def calls_in_text_grammar(calls: CallGrammar, frame: Frame, tokens: ControlTokens) -> str:
    """Free text, and calls of the right form in it."""
    rules = [*frame.rules, *calls.rules, "TEXT: /(.|\\n)*/"]
    if frame.answer:
        either = f"{frame.prologue} ({_calls(calls, tokens)} | {frame.answer} TEXT)"
        return _join(either, rules, calls.others)
    bare, marked = [], []
    for number, block in enumerate(calls.blocks):
        if not block.marker:
            bare.append(f"({block.rest})")
            continue
        marker = tokens.lark(block.marker)
        if marker.startswith("<"):
            rules.append(f"marked_{number}: TEXT {marker} {block.rest}")
        else:
            rules.append(f"head_{number}[lazy]: {lark_until(block.marker)}")
            rules.append(f"marked_{number}: head_{number} {block.rest}")
        marked.append(f"marked_{number}")
    text = "TEXT"
    if marked and calls.between is not None:
        text = f"({' | '.join(marked)})* TEXT"
    elif marked:
        text = f"({' | '.join(marked)} | TEXT)"
    if bare:
        rules.append("UNBRACED: /([^{](.|\\n)*)?/")
        text = f"({' | '.join([*bare, *marked, 'UNBRACED'])})"
    return _join(f"{frame.prologue} {text}", rules, calls.others)


def _calls(calls: CallGrammar, tokens: ControlTokens) -> str:
    blocks = [f"{tokens.lark(block.marker) if block.marker else ''} {block.rest}" for block in calls.blocks]
    block = f"({' | '.join(blocks)})"
    return block if calls.between is None else f"({block} ({calls.between} {block})*)"


def _join(start: str, rules: list[str], others: list[dict[str, Any]]) -> str:
    return join_grammars("\n".join([f"start: {start}", *rules]), others)
