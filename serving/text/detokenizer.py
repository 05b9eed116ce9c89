"""Token ids to text, one at a time: a UTF-8 character split over tokens appears when it is complete."""

import codecs
from collections.abc import Collection

from .token_table import TokenTable


class Detokenizer:
    """The text of one choice.

    Args:
        table: the tokenizer's tokens.
        continues: the text goes on from a prompt's text, so that the space before its first word belongs to it.
        shown: special tokens that appear in the text by their names.
    """

    def __init__(self, table: TokenTable, *, continues: bool, shown: Collection[int] = ()) -> None:
        self._table = table
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_next = table.strips_first_space and not continues
        self._within_character = False

    def feed(self, token_id: int) -> str:
        """The characters that this token completes."""
        if not (self._within_character or self._strip_next or token_id in self._shown):
            whole = self._table.whole_text(token_id)
            if whole is not None:  # nearly always: it needs no decoder
                return whole
        text = self._decode(token_id)
        self._within_character = bool(self._decoder.getstate()[0])
        return text

    def _decode(self, token_id: int) -> str:
        if token_id in self._shown:
            return self._decoder.decode(self._table.name(token_id).encode())
        text = self._decoder.decode(self._table.text_bytes(token_id))
        if self._strip_next and text:
            self._strip_next = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """At the end: U+FFFD if a character stayed incomplete."""
        return self._decoder.decode(b"", final=True)
