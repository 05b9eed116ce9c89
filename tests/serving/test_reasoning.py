"""Thinking is separated from the answer, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.text.pieces import PlainParser, ReasoningPiece, TextPiece
from penstock.serving.text.reasoning import ThinkMarkers, ThinkParser, find_think_markers

MARKERS = ThinkMarkers("<think>", "</think>")


def parse(pieces: list[str], *, starts_inside: bool = False) -> tuple[str, str]:
    """Thinking and answer; every answer piece must say where it stands in the raw text."""
    parser = ThinkParser(MARKERS, PlainParser(), starts_inside=starts_inside)
    raw = reasoning = answer = ""
    found = []
    for piece in pieces:
        found += parser.feed(piece, len(raw)) if piece else []
        raw += piece
    for piece in found + parser.finish(complete=True):
        match piece:
            case ReasoningPiece(text=text):
                reasoning += text
            case TextPiece(text=text, start=start):
                assert raw[start : start + len(text)] == text
                answer += text
    return reasoning, answer


CASES = [
    ("<think>\nhm, a < b\n\nso\n</think>\n\nyes", False, ("hm, a < b\n\nso", "yes")),
    ("hm</think>yes</think>", True, ("hm", "yes</think>")),
    ("\n<think></think>yes", False, ("", "yes")),
    ("the <think> tag", False, ("", "the <think> tag")),
    ("  <thin air", False, ("", "  <thin air")),
    ("  <thi", False, ("", "  <thi")),
    ("<think>never ends </thi", False, ("never ends </thi", "")),
    ("<think>a</think>\n", False, ("a", "")),
    (" ", False, ("", " ")),
]


@pytest.mark.parametrize(("text", "inside", "expected"), CASES)
def test_examples(text: str, inside: bool, expected: tuple[str, str]) -> None:
    assert parse([text], starts_inside=inside) == expected
    assert parse(list(text), starts_inside=inside) == expected


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", "\n", " ", "a"]), max_size=12), st.booleans()
)
def test_cuts_do_not_matter(words: list[str], inside: bool) -> None:
    text = "".join(words)
    assert (
        parse(words, starts_inside=inside)
        == parse(list(text), starts_inside=inside)
        == parse([text], starts_inside=inside)
    )


def test_markers_come_from_the_template() -> None:
    assert find_think_markers("{{ content.split('</think>')[-1] }}") == MARKERS
    assert find_think_markers("[THINK]{{ thoughts }}[/THINK]") == ThinkMarkers("[THINK]", "[/THINK]")
    assert find_think_markers("{{ content }}") is None
    assert MARKERS.is_open_after("<assistant>\n<think>\n")
    assert not MARKERS.is_open_after("<think>\n\n</think>\n\n")
