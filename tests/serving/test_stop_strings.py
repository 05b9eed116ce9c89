"""Stop strings in a growing text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.text.stop_strings import StopStrings

LETTERS = st.text("abc", max_size=30)


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """What comes out of a text in pieces; nothing that is out may be needed for a stop string later."""
    watch = StopStrings(stops)
    out = ""
    for piece in pieces:
        safe, stop = watch.feed(piece)
        out += safe
        if stop is not None:
            return out, stop
    return out + watch.flush(), None


def cut(text: str, lengths: list[int]) -> list[str]:
    pieces = []
    for length in lengths:
        pieces.append(text[:length])
        text = text[length:]
    return [*pieces, text]


def first_stop(stops: list[str], text: str) -> tuple[str, str | None]:
    """By definition: read character by character until the text ends with a stop string, the longest of them."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4), LETTERS, st.lists(st.integers(0, 6)))
def test_result_is_that_of_reading_character_by_character(stops: list[str], text: str, lengths: list[int]) -> None:
    assert run(stops, cut(text, lengths)) == first_stop(stops, text)


@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3), st.text("ab", max_size=20))
def test_text_is_held_only_while_it_may_become_a_stop_string(stops: list[str], text: str) -> None:
    watch = StopStrings(stops)
    sent = ""
    for end, character in enumerate(text, 1):
        safe, stop = watch.feed(character)
        sent += safe
        if stop is not None:
            return
        held = text[len(sent) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        longer = [text[start:end] for start in range(len(sent))]
        assert not any(stop.startswith(tail) for tail in longer for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["\n\n"], ["a\n", "b\n", "\nc"], ("a\nb", "\n\n")),
        (["END"], ["E", "N", "E", "N", "D", "x"], ("EN", "END")),
        (["abcd", "bc"], ["abcd"], ("a", "bc")),
        (["xabc", "bc"], ["xa", "bc"], ("", "xabc")),
        (["é🦊"], ["aé", "é", "🦊"], ("aé", "é🦊")),
        (["stop"], ["st", "o"], ("sto", None)),
    ],
)
def test_examples(stops: list[str], pieces: list[str], expected: tuple[str, str | None]) -> None:
    assert run(stops, pieces) == expected
