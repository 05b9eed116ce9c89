"""Very long texts: counted in windows, cut where it is safe."""

from typing import Any

import pytest
from fake_engine import CHAT, error, open_front, tiny_embedding_tokenizer, tiny_tokenizer

from penstock.serving.handlers import tokenize
from penstock.serving.text.tokenizer import TextTokenizer

LONG = "hello world the quick brown fox " * 6_000


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer())


@pytest.mark.parametrize("limit", [1, 100, 10_000])
def test_far_too_long_texts_keep_more_than_the_limit(tokenizer: TextTokenizer, limit: int) -> None:
    whole = tokenizer.encode(LONG, 10**9, add_special_tokens=False)
    head = tokenizer.encode(LONG, limit, add_special_tokens=False)
    assert limit < len(head) < len(whole) / 2
    assert head[:limit] == whole[:limit]


def test_texts_within_the_limit_are_whole(tokenizer: TextTokenizer) -> None:
    whole = tokenizer.encode(LONG, 10**9, add_special_tokens=False)
    assert tokenizer.encode(LONG, len(whole), add_special_tokens=False) == whole


def test_texts_of_unusually_long_tokens_are_whole() -> None:
    raw = tiny_tokenizer()
    raw.add_tokens(["x" * 40])
    text = "x" * 40 * 5_000
    ids = TextTokenizer(raw).encode(text, 5_000, add_special_tokens=False)
    assert len(ids) == 5_000 and len(set(ids)) == 1


def test_cutting_equals_cutting_everything() -> None:
    tokenizer = TextTokenizer(tiny_embedding_tokenizer())
    texts = [LONG, "a", LONG]
    for whole, cut in zip(tokenizer.encode_batch(texts, 10**9), tokenizer.encode_batch_cut(texts, 50), strict=True):
        assert cut == (whole if len(whole) <= 50 else [*whole[:49], whole[-1]])


@pytest.mark.parametrize("fields", [{"prompt": LONG}, {"prompt": ["a", LONG * 10]}, {"prompt": [5] * 200_000}])
async def test_far_too_long_prompts_are_refused(fields: dict[str, Any]) -> None:
    async with open_front() as front:
        param = "prompt.1" if fields["prompt"][0] == "a" else "prompt"
        error(await front.complete(**fields), 400, "context_length_exceeded", param)
        error(
            await front.embed(input=fields["prompt"]), 400, "context_length_exceeded", param.replace("prompt", "input")
        )


@pytest.mark.parametrize("limit", [40, 300])
def test_small_limits_are_cut_by_small_windows(tokenizer: TextTokenizer, limit: int) -> None:
    assert len(tokenizer.encode(LONG, limit, add_special_tokens=False)) < 5_000


async def test_texts_that_no_model_could_take_are_refused_unread() -> None:
    """A tokenizer may call thirty million letters one unknown word; finding out takes half a minute."""
    async with open_front() as front:
        text = "x" * 70_000
        for response in (
            await front.complete(prompt=text),
            await front.chat(messages=[{"role": "user", "content": text}]),
            await front.embed(input=text),
        ):
            assert response.status_code == 400
            details = response.json()["error"]
            assert details["code"] == "context_length_exceeded"
            assert "characters" in details["message"] and "65536" in details["message"]
        assert (await front.embed(input=text, truncate_prompt_tokens=5)).status_code == 200


async def test_a_longer_text_is_not_tokenised_for_its_own_sake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "MAX_TOKENS", 100)
    async with open_front() as front:
        response = await front.post("/tokenize", {"model": CHAT, "prompt": LONG})
        assert "100" in error(response, 400, "context_length_exceeded", "prompt")
