"""The bytes that each token id stands for, so that a text is the concatenation of its tokens' bytes.

The tokenizers library decodes whole sequences; streaming and log probabilities need single tokens, and a token may hold
a part of a UTF-8 character. The decoder named in tokenizer.json tells how tokens spell bytes:

    byte-level      every character of the token is one byte, in GPT-2's alphabet (GPT-2, Llama 3, Qwen, SmolLM)
    sentencepiece   U+2581 is a space, and <0x0A> may be one byte (Llama 2, Mistral, Gemma)
    words           tokens are words with spaces between them, "##" glues to the left (WordPiece, or no decoder at all)
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tokenizers import Tokenizer

Spelling = Literal["byte-level", "sentencepiece", "words"]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTable:
    """Token ids to bytes and to printable strings, looked up once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoders = list(_decoders(json.loads(tokenizer.to_str())["decoder"]))
        self._tokenizer = tokenizer
        self._spelling = _spelling(decoders)
        self._byte_fallback = any(decoder["type"] == "ByteFallback" for decoder in decoders)
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {i for i, token in added.items() if token.special}
        self.control_ids: Mapping[str, int] = {
            token.content: token_id
            for token_id, token in added.items()
            if token.special or (token.content.startswith("<") and token.content.endswith(">"))
        }
        """Token ids by text of the tokens that the grammar compiler does not take for text, by this rule of its own."""
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str | None] = {}
        self.strips_first_space = self._spelling == "words" or any(map(_strips_first_space, decoders))
        """Whether a text of its own, unlike the continuation of one, loses the space before its first word."""

    def text_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text: nothing for special tokens and for ids without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = b"" if token_id in self._special_ids else self._spell(token_id)
            self._bytes[token_id] = known
        return known

    def whole_text(self, token_id: int) -> str | None:
        """The same as text; None: it begins or ends within a character."""
        try:
            return self._texts[token_id]
        except KeyError:
            try:
                text: str | None = self.text_bytes(token_id).decode()
            except UnicodeDecodeError:
                text = None
            self._texts[token_id] = text
            return text

    def name(self, token_id: int) -> str:
        """The token as people read it: its text, or the name of a special token."""
        if token_id in self._special_ids:
            return self._tokenizer.id_to_token(token_id) or ""
        return self.text_bytes(token_id).decode("utf-8", "replace")

    def _spell(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:  # models pad their vocabulary
            return b""
        if self._spelling == "byte-level":
            try:
                return bytes(_BYTE_OF[character] for character in token)
            except KeyError:  # an added token, written as plain text
                return token.encode()
        if self._spelling == "words":
            return token.removeprefix("##").encode() if token.startswith("##") else b" " + token.encode()
        byte = _BYTE_TOKEN.fullmatch(token) if self._byte_fallback else None
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _decoders(inner)
    else:
        yield decoder


def _spelling(decoders: list[dict[str, Any]]) -> Spelling:
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds:
        return "byte-level"
    if kinds & {"ByteFallback", "Metaspace"} or any("\u2581" in json.dumps(d, ensure_ascii=False) for d in decoders):
        return "sentencepiece"
    if not decoders or kinds == {"WordPiece"}:
        return "words"
    raise ValueError(
        f"the tokenizer decodes by {', '.join(sorted(kinds))}, but only ByteLevel, ByteFallback, Metaspace and "
        "WordPiece decoders are understood; convert the tokenizer to one of them"
    )


def _strips_first_space(decoder: dict[str, Any]) -> bool:
    match decoder:
        case {"type": "Strip", "content": " ", "start": int(start)}:
            return start > 0
        case {"type": "Metaspace"}:
            return bool(decoder.get("prepend_scheme", "always") != "never")
        case _:
            return False


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
