"""How many values a JSON text may have, whatever stands in its texts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.errors import ApiError
from penstock.serving.routes import json_size
from penstock.serving.routes.json_size import MAX_CONTAINERS, MAX_VALUES, check_json_size

JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a"\\{[,}] é'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a"\\{,'), inner),
)


def count(value: Any) -> tuple[int, int]:
    """Containers and commas."""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [count(child) for child in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(n for n, _ in inner), max(0, len(value) - 1) + sum(n for _, n in inner)


@given(JSON, st.booleans(), st.integers(1, 9))
def test_texts_do_not_count(value: Any, ascii_only: bool, piece: int) -> None:
    before, json_size._PIECE = json_size._PIECE, piece
    try:
        raw = json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode()
        assert json_size._count_outside_texts(raw) == count(value)
    finally:
        json_size._PIECE = before


@pytest.mark.parametrize(("value", "limit"), [(b"{},", MAX_CONTAINERS), (b"1,", MAX_VALUES)])
def test_too_many_values_are_refused(value: bytes, limit: int) -> None:
    raw = b"[" + value * limit + b"1]"
    with pytest.raises(ApiError, match=f"at most {limit} are read") as caught:
        check_json_size(raw)
    assert (caught.value.status, caught.value.code) == (413, "request_too_large")


def test_what_a_large_text_holds_is_no_value() -> None:
    check_json_size(json.dumps({"input": "{[,]}" * MAX_CONTAINERS}).encode())
