"""Whatever JSON a client sends, the answer is never a fault of ours and never a 422."""

import asyncio
from typing import Any

import pytest
from fake_engine import CHAT, EMBED, open_front
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.serving.protocol.anthropic.messages import MessagesBody
from penstock.serving.protocol.chat import ChatCompletionBody
from penstock.serving.protocol.completion import CompletionBody
from penstock.serving.protocol.embedding import EmbeddingBody
from penstock.serving.protocol.lmstudio.chat import NativeChatBody
from penstock.serving.protocol.responses.body import ResponseBody

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["user", "text", "hello", "auto", "none"]),
)
KEYS = st.sampled_from(["role", "content", "type", "text", "function", "name", "5", "include_usage", "x"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
BASES: dict[str, tuple[type, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionBody, {"model": CHAT, "messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (CompletionBody, {"model": CHAT, "prompt": "hi"}),
    "/v1/responses": (ResponseBody, {"model": CHAT, "input": "hi"}),
    "/v1/embeddings": (EmbeddingBody, {"model": EMBED, "input": "hi"}),
    "/v1/messages": (MessagesBody, {"model": CHAT, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
    "/api/v1/chat": (NativeChatBody, {"model": CHAT, "input": "hi"}),
}
DETAILS = {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", BASES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_body_is_a_fault_of_ours(path: str, data: st.DataObject) -> None:
    kind, base = BASES[path]
    names = sorted({*kind.model_fields, *kind.other_fields} - {"model"})  # type: ignore[attr-defined]
    changes = data.draw(st.dictionaries(st.sampled_from(names), JSON, min_size=1, max_size=3))

    async def ask() -> None:
        async with open_front() as front:
            response = await front.post(path, base | changes)
            assert response.status_code in (200, 400, 404), response.text
            if response.status_code != 200:
                assert {"message", "type"} <= set(response.json()["error"]) <= DETAILS
            else:
                assert len(front.engine.jobs) >= 1

    asyncio.run(ask())
