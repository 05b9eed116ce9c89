"""A model's tokenizer as the handlers use it: text to ids, of long ones no more than is needed, and ids to text."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from .token_table import TokenTable

_WINDOW = 2**16  # characters, at most, that are tokenised at once to count the tokens of a very long text
_SMALLEST_WINDOW = 2**12
_SEAM = 64  # tokens at the end of a cut text that may differ from those of the whole text
_USUAL_MAX_CHARACTERS = 16  # per token; longer texts are counted before they are tokenised
_MAX_CHARACTERS = 128  # a token, at least; those of spaces are as long
_BATCH_CHARACTERS = 2**20  # the library's encodings take a hundred bytes a token until their ids are copied out


class TextTokenizer:
    """A `tokenizers.Tokenizer` without its own truncation and padding, which would change inputs in silence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.table = TokenTable(tokenizer)
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)  # the alphabet of bytes makes none shorter

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

    def max_characters(self, limit: int) -> int:
        """Characters that `limit` tokens may have.

        A tokenizer that passes over spaces, or takes any word that it does not know for one token, would take more.
        """
        return max(_WINDOW, limit * max(self._longest, _MAX_CHARACTERS))

    def encode(self, text: str, limit: int, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; of one with far more than `limit` tokens only the beginning, still more than that.

        Tokenising megabytes takes gigabytes, and such a text is refused anyway.
        """
        ids: list[int] = self._encoding(self._head(text, limit), add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Token ids of texts, special tokens included, with `limit` as for `encode`."""
        heads = (self._head(text, limit) for text in texts)
        return [encoding.ids for batch in _batches(heads) for encoding in self._tokenizer.encode_batch_fast(batch)]

    def encode_batch_cut(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of texts, cut to `max_length` so that their special tokens, first and last, stay."""
        room = max(0, max_length - self._tokenizer.num_special_tokens_to_add(False))
        ids = []
        most = self.max_characters(max_length)
        for batch in _batches(self._head(text[:most], max_length) for text in texts):
            for encoding in self._tokenizer.encode_batch(batch, add_special_tokens=False):
                encoding.truncate(room)
                ids.append(self._tokenizer.post_process(encoding).ids[:max_length])
        return ids

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], limit: int, *, max_length: int | None, max_second: int | None
    ) -> list[tuple[list[int], int]]:
        """Two texts in one input, special tokens included, and where in it the second one starts.

        Args:
            pairs: the texts; the same first text may come with many second ones.
            limit: as for `encode`, of each text.
            max_length: cut second texts so that their pair has at most so many tokens; first texts are never cut.
            max_second: cut second texts to so many tokens before that.

        Returns:
            Of each pair the token ids, and the index of the first one whose token type is not 0, or else their number.
        """
        num_special = self._tokenizer.num_special_tokens_to_add(True)
        firsts = {text: self._bare(text, limit) for text, _ in pairs}
        inputs = []
        for first, second in pairs:
            most = None if max_length is None and max_second is None else self.max_characters(limit)
            before, after = firsts[first], self._bare(second[:most], limit)
            if max_second is not None:
                after.truncate(max_second)
            if max_length is not None:
                after.truncate(max(0, max_length - num_special - len(before)))
            both = self._tokenizer.post_process(before, after)
            types: list[int] = both.type_ids
            inputs.append((both.ids, types.index(1) if 1 in types else len(types)))
        return inputs

    def _bare(self, text: str, limit: int) -> Encoding:
        return self._encoding(self._head(text, limit))

    def _head(self, text: str, limit: int) -> str:
        """The text, or its beginning if that has more than `limit` tokens already."""
        usual = _USUAL_MAX_CHARACTERS * limit
        window = min(_WINDOW, max(_SMALLEST_WINDOW, usual))
        if len(text) <= max(window, usual):
            return text
        num_tokens = 0
        next_check = 0
        for end in range(window, len(text), window):
            num_tokens += self._count(text[end - window : end])
            if num_tokens > limit and end >= next_check:
                # Cutting a text may add tokens at the seams, so the sum is only a guess. Doubling bounds the work.
                if (num_tokens if end == window else self._count(text[:end])) > limit + _SEAM:
                    return text[:end]
                next_check = 2 * end
        return text

    def _count(self, text: str) -> int:
        return len(self._encoding(text))

    def _encoding(self, text: str, *, add_special_tokens: bool = False) -> Encoding:
        """One text as a batch: the library's `encode` holds the GIL, seconds for a long text, and a batch does not."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_id(self, token: str) -> int | None:
        """The id of a token under its own name; None if there is none."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def begin_token_ids(self) -> tuple[int, ...]:
        """The tokens that are put before every text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        framed = self._tokenizer.encode("a", add_special_tokens=True).ids
        return tuple(framed[: framed.index(bare[0])]) if bare else ()


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive texts of bounded size together."""
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
