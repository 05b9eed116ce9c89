"""How tokenizers of GGUF files treat text before their merges apply.

For byte-level vocabularies a GGUF file names the kind in `tokenizer.ggml.pre` and holds no rule. The rules here are
those of the models' own `tokenizer.json` files. A kind that is not listed is refused: a wrong split gives plausible,
worse answers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from ..errors import UnsupportedModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)
_SEED_CODER = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}"
# A word: capitals, then small letters. Modifier letters, other letters and marks are both.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")


def _byte_level(*, use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _gpt2() -> Any:
    return _byte_level(use_regex=True)


def _digits_then_gpt2() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _falcon() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(behavior="contiguous"),
            _gpt2(),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"),
        ]
    )


def _splits(*patterns: str) -> Callable[[], Any]:
    def build() -> Any:
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*splits, _byte_level(use_regex=False)])

    return build


@dataclass(frozen=True, slots=True)
class SplitKind:
    """What a kind's name implies for a byte-level tokenizer."""

    build: Callable[[], Any]
    """Makes the pre-tokenizer."""
    nfc: bool = False
    """Whether text is composed (Unicode NFC) first."""
    ignore_merges: bool = False
    """Whether a piece that is a token as a whole is taken without merging."""
    add_bos: bool = False
    """Whether texts start with the begin token where the file does not say."""


def _named(names: Iterable[str], kind: SplitKind) -> dict[str, SplitKind]:
    return dict.fromkeys(names, kind)


SPLIT_KINDS: dict[str, SplitKind] = {
    **_named(("gpt-2", "phi-2", "exaone4"), SplitKind(_gpt2)),
    **_named(("mpt", "olmo"), SplitKind(_gpt2, nfc=True)),
    **_named(("smollm", "starcoder", "refact", "codeshell", "minerva-7b"), SplitKind(_digits_then_gpt2)),
    **_named(("command-r",), SplitKind(_digits_then_gpt2, nfc=True)),
    **_named(("falcon",), SplitKind(_falcon)),
    **_named(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"),
        SplitKind(_splits(_LLAMA3), ignore_merges=True, add_bos=True),
    ),
    **_named(("dbrx", "smaug-bpe"), SplitKind(_splits(_LLAMA3))),
    **_named(("qwen2",), SplitKind(_splits(_QWEN2), nfc=True)),
    **_named(("deepseek-r1-qwen", "megrez", "stablelm2"), SplitKind(_splits(_QWEN2))),
    **_named(("qwen35",), SplitKind(_splits(_QWEN35), nfc=True)),
    **_named(("tekken",), SplitKind(_splits(_TEKKEN), ignore_merges=True, add_bos=True)),
    **_named(("gpt-4o", "llama4", "minimax-m2"), SplitKind(_splits(_GPT4O))),
    **_named(("deepseek-v3",), SplitKind(_splits(*_DEEPSEEK_V3))),
    **_named(("deepseek-coder",), SplitKind(_splits(*_DEEPSEEK_CODER))),
    **_named(("seed-coder",), SplitKind(_splits(_SEED_CODER))),
}


def split_kind(name: str | None) -> SplitKind:
    """The kind called `name` in GGUF files.

    Raises:
        UnsupportedModelError: the file names no kind, or one that is not known here.
    """
    if name is None or name == "default":
        raise UnsupportedModelError(
            "the GGUF file does not say how its tokenizer splits text (tokenizer.ggml.pre is "
            f"{'missing' if name is None else repr(name)}); convert the model again with a current converter"
        )
    if name not in SPLIT_KINDS:
        raise UnsupportedModelError(
            f"the GGUF file's tokenizer splits text in a way that is not known here: tokenizer.ggml.pre is {name!r}, "
            f"known are {', '.join(sorted(SPLIT_KINDS))}; use the model's safetensors folder instead"
        )
    return SPLIT_KINDS[name]


def restore_split(tokenizer: Tokenizer, kind: SplitKind) -> None:
    """Give a byte-level `tokenizer` the pre-tokenizer, normalizer and merge rule of its kind, in place."""
    tokenizer.pre_tokenizer = kind.build()
    tokenizer.normalizer = normalizers.NFC() if kind.nfc else None
    if kind.ignore_merges:
        tokenizer.model.ignore_merges = True


def restore_spaces(tokenizer: Tokenizer, *, add_prefix: bool) -> None:
    """Give a SentencePiece BPE `tokenizer` its treatment of spaces, in place.

    Spaces become U+2581 and nothing is split. With `add_prefix` every stretch of text, at the start and after each
    special token, gets one more in front, also where it begins with a space itself.
    """
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if add_prefix else replace
    tokenizer.pre_tokenizer = None
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if add_prefix else steps)
