"""Very long texts: counted in windows, cut where it is safe."""

from typing import Any

import pytest
from fake_engine import error, open_front, tiny_embedding_tokenizer, tiny_tokenizer

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
