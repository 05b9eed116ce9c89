"""Content blocks from a turn's events, whole and as a stream."""

import json
from typing import Any

from penstock.serving.handlers.anthropic.content import Content, ContentEvents
from penstock.serving.handlers.turn_types import (
    ChoiceEnd,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    TurnEvent,
)
from penstock.serving.text.tools import Tool

TOOL = Tool(name="look")
TURN: list[TurnEvent] = [
    PromptProgress(1, 2),
    ReasoningDelta(0, "hm"),
    ReasoningDelta(0, "m"),
    TextDelta(0, "I "),
    TextDelta(0, ""),
    TextDelta(0, "look."),
    ToolCallStart(0, 0, "call_1", TOOL),
    ToolCallDelta(0, 0, '{"at":'),
    ToolCallDelta(0, 0, ' "it"}'),
    ToolCallEnd(0, 0, '{"at": "it"}'),
    ToolCallStart(0, 1, "call_2", TOOL),
    ToolCallEnd(0, 1, ""),
    ChoiceEnd(0, "tool_calls"),
]
BLOCKS = [
    {"type": "thinking", "thinking": "hmm", "signature": "penstock"},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "it"}},
    {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
]


def whole(events: list[TurnEvent], **options: Any) -> list[dict[str, Any]]:
    content = Content(**({"shows_thinking": True} | options))
    for event in events:
        content.feed(event)
    assert content.end is events[-1]
    return content.blocks


def streamed(events: list[TurnEvent], **options: Any) -> list[dict[str, Any]]:
    """The frames of a stream."""
    content = ContentEvents(**({"shows_thinking": True} | options))
    frames = b"".join(map(content.feed, events)).split(b"\n\n")[:-1]
    assert content.end is events[-1]
    return [json.loads(frame.partition(b"data: ")[2]) for frame in frames]


def assembled(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks as a client puts them together; each frame is of the block that is open."""
    blocks: list[dict[str, Any]] = []
    arguments = ""
    for frame in frames:
        if frame["type"] == "ping":
            continue
        if frame["type"] == "content_block_start":
            assert frame["index"] == len(blocks)
            blocks.append(dict(frame["content_block"]))
            arguments = ""
            continue
        assert frame["index"] == len(blocks) - 1
        if frame["type"] == "content_block_stop":
            if arguments:
                blocks[-1]["input"] = json.loads(arguments)
            continue
        delta = frame["delta"]
        kind = delta.pop("type")
        (text,) = delta.values()
        if kind == "input_json_delta":
            arguments += text
        else:
            blocks[-1][kind.removesuffix("_delta")] += text
    return blocks


def test_whole_blocks() -> None:
    assert whole(TURN) == BLOCKS


def test_streamed_blocks_are_the_same() -> None:
    frames = streamed(TURN)
    assert assembled(frames) == BLOCKS
    assert frames[0] == {"type": "ping"}
    kinds = [frame["type"] for frame in frames[1:]]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(BLOCKS)


def test_omitted_thinking_leaves_its_signature() -> None:
    thought = {"type": "thinking", "thinking": "", "signature": "penstock"}
    assert whole(TURN, shows_thinking=False)[0] == thought
    assert assembled(streamed(TURN, shows_thinking=False))[0] == thought


def test_a_call_that_is_cut_short() -> None:
    events: list[TurnEvent] = [
        ToolCallStart(0, 0, "call_1", TOOL),
        ToolCallDelta(0, 0, '{"at":'),
        ChoiceEnd(0, "length"),
    ]
    assert whole(events)[0]["input"] == {"INVALID_JSON": '{"at":'}
    assert streamed(events)[-1] == {"type": "content_block_stop", "index": 0}


def test_nothing_said_is_no_block() -> None:
    events: list[TurnEvent] = [TextDelta(0, ""), ChoiceEnd(0, "stop")]
    assert whole(events) == [] and streamed(events) == []
