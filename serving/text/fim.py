"""Fill-in-the-middle: which of the known token sets a tokenizer has, and how they frame a prefix and a suffix."""

from collections.abc import Sequence
from dataclasses import dataclass

from .tokenizer import TextTokenizer

_ENDS = ("<|fim_pad|>", "<fim_pad>", "<|file_sep|>", "<file_sep>", "<|repo_name|>", "<|endoftext|>", "▁<EOT>", "<EOT>")
"""What models write after the middle; not all of them name it as their end token."""


@dataclass(frozen=True, slots=True)
class _Markers:
    """The tokens of one model family; an empty `middle` means that the frame ends with the later of the two texts."""

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False


_FAMILIES = (
    _Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite 4
    _Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    _Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _Markers("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    _Markers("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    _Markers("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    _Markers("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),  # Seed-Coder
    _Markers("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)


@dataclass(frozen=True, slots=True)
class FillInTheMiddle:
    """How one model is asked for the text between two texts."""

    begin: tuple[int, ...]
    """What the tokenizer puts before every prompt."""
    prefix: int
    suffix: int
    middle: int | None
    suffix_first: bool
    stop_token_ids: tuple[int, ...]
    """End the middle, besides the model's own end tokens."""

    @property
    def num_markers(self) -> int:
        """Tokens of a frame without its texts."""
        return len(self.begin) + 2 + (self.middle is not None)

    def frame(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """The prompt for what stands between the token ids of two texts."""
        before, after = [self.prefix, *prefix], [self.suffix, *suffix]
        texts = after + before if self.suffix_first else before + after
        return [*self.begin, *texts, *(() if self.middle is None else (self.middle,))]


def find_fill_in_the_middle(tokenizer: TextTokenizer) -> FillInTheMiddle | None:
    """The frame of a model's tokenizer; None if it has none of the known token sets."""
    for family in _FAMILIES:
        names = [family.prefix, family.suffix, *([family.middle] if family.middle else [])]
        ids = [tokenizer.token_id(name) for name in names]
        if None not in ids:
            prefix, suffix, *middle = (token_id for token_id in ids if token_id is not None)
            return FillInTheMiddle(
                begin=tokenizer.begin_token_ids(),
                prefix=prefix,
                suffix=suffix,
                middle=middle[0] if middle else None,
                suffix_first=family.suffix_first,
                stop_token_ids=tuple(i for name in _ENDS if (i := tokenizer.token_id(name)) is not None),
            )
    return None
