"""Whatever a model writes, the parsers of calls take it: no fault, and no difference by how the text is cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tool_formats import BEGIN, BEGINS, FORMATS, MARKERS, SEP, parse

from penstock.serving.text.marker_search import MarkerSearch
from penstock.serving.text.tool_formats.json_scanner import JsonScanner

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FRAGMENTS = (
    *MARKERS,
    *(
        '{"name": "weather", "arguments": {"city": "Rome"}}',
        '{"name": "',
        "weather",
        "patch",
        "who",
        '", "arguments": ',
        *('<tool_call>{"name": "weather", "arguments": ', "[TOOL_CALLS]weather", "<tool_call>\n<function=weather>\n"),
        f"{BEGINS}{BEGIN}weather{SEP}",
    ),
    *('{"city": "Ro', 'me"}', "}", "]", "[", "{", ", ", '"', "\\", "\n", " ", "text", "function", "```json\n", "\n```"),
    *("<function=weather>", "<parameter=city>", "\n</parameter>", "</function>", "analysis", "commentary", "final"),
    *(" to=functions.weather ", '<custom_tool_call name="patch">', "</custom_tool_call>", "null", "1"),
)


def follow(pieces: list[str]) -> tuple[int, bool]:
    """How many characters belong to a value, and whether it has ended."""
    scanner, num = JsonScanner(), 0
    for piece in pieces:
        end = scanner.feed(piece)
        num += end
        if scanner.complete:
            break
    return num, scanner.complete


@given(VALUES, st.sampled_from(["", " ", "x", "}", ",", "\n</tool_call>"]), st.integers(0, 3))
def test_a_json_value_ends_where_it_ends(value: Any, rest: str, indent: int) -> None:
    text = json.dumps(value, indent=indent or None, ensure_ascii=False)
    bare = not text.endswith(("}", "]", '"'))
    for pieces in ([text + rest], list(text + rest)):
        if bare and (not rest or rest == "x"):
            continue  # only what follows a number or a word ends it
        assert follow(pieces) == (len(text), True)


@pytest.mark.parametrize("text", ["{,", "[1 2", '{"a" 1', "{1", "]", "[}", "tru,", "01 ", "[1,]", "{'a'", "- "])
def test_what_is_no_json_is_noticed(text: str) -> None:
    for pieces in ([text], list(text)):
        with pytest.raises(ValueError, match=r"place|no value"):
            follow(pieces)


@given(st.lists(st.sampled_from(["<a>", "<ab>", "<", "a", "b", ">", "x"]), max_size=10))
def test_markers_are_found_however_the_text_is_cut(words: list[str]) -> None:
    text = "".join(words)

    def find(pieces: list[str]) -> tuple[str, str | None]:
        search, before = MarkerSearch(["<a>", "<ab>", "x"]), ""
        for piece in pieces:
            new, marker, _ = search.feed(piece)
            before += new
            if marker is not None:
                return before, marker
        return before + search.flush(), None

    assert find(words) == find(list(text)) == find([text])


@pytest.mark.parametrize("name", FORMATS)
@given(words=st.lists(st.sampled_from(FRAGMENTS), max_size=10), complete=st.booleans())
def test_no_text_is_a_fault(name: str, words: list[str], complete: bool) -> None:
    text = "".join(words)
    whole = parse(FORMATS[name], [text], complete=complete)
    assert parse(FORMATS[name], words, complete=complete) == whole
    assert parse(FORMATS[name], list(text), complete=complete) == whole
