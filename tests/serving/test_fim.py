"""Fill-in-the-middle frames of the known model families."""

import pytest
from fake_engine import tiny_embedding_tokenizer, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer

from penstock.serving.text.fim import find_fill_in_the_middle
from penstock.serving.text.tokenizer import TextTokenizer


def with_tokens(tokenizer: Tokenizer, *names: str) -> tuple[TextTokenizer, list[int]]:
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return TextTokenizer(tokenizer), [tokenizer.token_to_id(name) for name in names]


@pytest.mark.parametrize(
    "names",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ],
)
def test_prefix_then_suffix_then_the_gap(names: tuple[str, ...]) -> None:
    tokenizer, (prefix, suffix, middle) = with_tokens(tiny_tokenizer(), *names)
    fim = find_fill_in_the_middle(tokenizer)
    assert fim is not None
    assert fim.frame([5, 6], [7]) == [prefix, 5, 6, suffix, 7, middle]


def test_codestral_puts_the_suffix_first_and_has_no_middle() -> None:
    tokenizer, (prefix, suffix) = with_tokens(tiny_tokenizer(), "[PREFIX]", "[SUFFIX]")
    fim = find_fill_in_the_middle(tokenizer)
    assert fim is not None
    assert fim.frame([5, 6], [7]) == [suffix, 7, prefix, 5, 6]


def test_begin_tokens_come_before_the_frame_and_end_tokens_never() -> None:
    tokenizer, (prefix, suffix, middle, pad) = with_tokens(
        tiny_embedding_tokenizer(), "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"
    )
    fim = find_fill_in_the_middle(tokenizer)
    assert fim is not None
    end = tokenizer.token_id("<|endoftext|>")
    assert fim.frame([], []) == [end, prefix, suffix, middle]
    assert set(fim.stop_token_ids) == {pad, end}


def test_tokenizers_without_the_tokens_have_no_frame() -> None:
    tokenizer, _ = with_tokens(tiny_tokenizer(), "<fim_prefix>", "<fim_middle>")
    assert find_fill_in_the_middle(tokenizer) is None
