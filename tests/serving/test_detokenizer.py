"""Streamed text equals the library's decoding of all tokens, for each way in which tokens spell bytes."""

import pytest
from fake_engine import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from penstock.serving.text.detokenizer import Detokenizer
from penstock.serving.text.token_table import TokenTable

BYTE_LEVEL = tiny_tokenizer()


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's form: U+2581 for spaces, <0xNN> for bytes without a token."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdeo\u2581", "\u2581a", "ab"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("\u2581", "a"), ("a", "b")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


SENTENCEPIECE = sentencepiece_tokenizer()


def streamed(tokenizer: Tokenizer, ids: list[int], *, continues: bool = False) -> str:
    detokenizer = Detokenizer(TokenTable(tokenizer), continues=continues)
    return "".join([*map(detokenizer.feed, ids), detokenizer.flush()])


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1)))
def test_byte_level_equals_the_library_for_any_tokens(ids: list[int]) -> None:
    assert streamed(BYTE_LEVEL, ids) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


@given(st.text())
def test_no_broken_character_ever_shows(text: str) -> None:
    table = TokenTable(BYTE_LEVEL)
    detokenizer = Detokenizer(table, continues=True)
    ids = BYTE_LEVEL.encode(text).ids
    pieces = [*map(detokenizer.feed, ids), detokenizer.flush()]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert b"".join(map(table.text_bytes, ids)).decode() == text


@given(st.text("abc deo é🦊\n", max_size=20))
def test_sentencepiece_equals_the_library(text: str) -> None:
    ids = SENTENCEPIECE.encode(text, add_special_tokens=False).ids
    assert streamed(SENTENCEPIECE, ids) == SENTENCEPIECE.decode(ids, skip_special_tokens=True)
    continued = streamed(SENTENCEPIECE, ids, continues=True)
    assert continued == (f" {text}" if text else "")


def test_emoji_over_four_tokens_appears_with_the_last() -> None:
    detokenizer = Detokenizer(TokenTable(BYTE_LEVEL), continues=True)
    ids = BYTE_LEVEL.encode("🦊").ids
    assert [detokenizer.feed(i) for i in ids] == ["", "", "", "🦊"]


def test_special_and_unknown_tokens_are_no_text() -> None:
    table = TokenTable(BYTE_LEVEL)
    end = BYTE_LEVEL.token_to_id("<|im_end|>")
    assert (table.text_bytes(end), table.name(end)) == (b"", "<|im_end|>")
    assert (table.text_bytes(10**6), table.name(10**6)) == (b"", "")
    assert streamed(BYTE_LEVEL, [end, *BYTE_LEVEL.encode("hi").ids, 10**6]) == "hi"


def test_added_tokens_are_plain_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<thin king>é", special=False)])
    ids = tokenizer.encode("a<thin king>éb").ids
    assert len(ids) == 3 and streamed(tokenizer, ids) == "a<thin king>éb"


def test_words_are_joined_by_spaces() -> None:
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "##s": 2}, unk_token="hello"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert streamed(tokenizer, [0, 1]) == tokenizer.decode([0, 1]) == "hello world"
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    assert streamed(tokenizer, [0, 1, 2]) == tokenizer.decode([0, 1, 2]) == "hello worlds"


def test_unknown_spellings_are_refused_by_name() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.decoder = decoders.CTC()
    with pytest.raises(ValueError, match="decodes by CTC"):
        TokenTable(tokenizer)
