"""A model's tokenizer as the handlers use it: text to ids without stalling the event loop, and ids to text."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from .token_table import TokenTable

Result = TypeVar("Result")

INLINE_CHARACTERS = 2048
"""Shorter texts take less than the hop to a thread."""


async def off_loop(num_characters: int, work: Callable[[], Result]) -> Result:
    """`work()`, in a thread if its text is long enough to stall other clients; tokenizers release the GIL."""
    if num_characters <= INLINE_CHARACTERS:
        return work()
    return await asyncio.to_thread(work)


class TextTokenizer:
    """A `tokenizers.Tokenizer` without its own truncation and padding, which would change inputs in silence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.table = TokenTable(tokenizer)

    @classmethod
    def from_folder(cls, folder: Path) -> "TextTokenizer":
        """The tokenizer of a model folder.

        Raises:
            FileNotFoundError: there is no tokenizer.json.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; models need their tokenizer in this form")
        return cls(Tokenizer.from_file(str(path)))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: Sequence[str], *, max_length: int | None = None) -> list[list[int]]:
        """Token ids of texts, special tokens included; longer ones keep their first tokens and their special tokens."""
        if max_length is None:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        room = max(0, max_length - self._tokenizer.num_special_tokens_to_add(False))
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for encoding in encodings:
            encoding.truncate(room)
        return [self._tokenizer.post_process(encoding).ids[:max_length] for encoding in encodings]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text
