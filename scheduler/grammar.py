"""Compiles the grammars of structured output for one model, and follows one output through its grammar.

The text of a grammar is llguidance's: Lark, or JSON with a list of grammars. Compiling takes from a millisecond to
seconds, and a hostile grammar can make it take for ever or end the process, so the worker tries unknown ones out first
(`grammar_trial`) and compiles in other threads. What follows an output costs microseconds a token.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RequestError
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

INVALID_GRAMMAR = "invalid_grammar"
MAX_GRAMMAR_BYTES = 1 << 20
_MAX_CACHED_GRAMMARS = 256
_MAX_CACHED_BYTES = 512 << 20
_BYTES_PER_CHARACTER = 100  # of compiled grammars, where nobody has measured
_MAX_ITEMS_PER_STEP = 25_000  # parser items for one token, half of the default: about 0.1 s for the worst grammars
_MAX_LEXER_STATES = 50_000  # about 2 kB each, a fifth of the default
_MAX_REASON = 300  # characters of the library's messages
_QUOTED_LINE = re.compile(r"^ *(?:\d+ \| .*|\^+ *)$", re.MULTILINE)
_PLACE = re.compile(r"at (\d+)\(\d+\): ")
_PLACE_OF_OURS = re.compile(rf"^{_PLACE.pattern}(?:failed to compile JSON schema: |(?=invalid regex))")
"""Lines of a grammar that the client has not seen."""
_OPTION_OF_OURS = re.compile(r"\.? Enable '\w+' option.*")


class GrammarError(RequestError):
    """A grammar that cannot be compiled or followed.

    Attributes:
        rule: the part of it that is at fault, a rule or a named grammar; "": nobody knows.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(message, code=INVALID_GRAMMAR)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a grammar's tokenizer is made of."""

    folder: str
    """The model's, with a tokenizer.json."""
    size: int
    """Token ids of the model."""
    eos_token_ids: tuple[int, ...]

    def load(self) -> "LLTokenizer":
        """The tokenizer in the library's form, which takes about a second for a large vocabulary.

        Raises:
            RequestError: the folder has no tokenizer that fits the model.
        """
        from llguidance import LLTokenizer

        try:
            text = (Path(self.folder) / "tokenizer.json").read_text()
            known = _token_ids(json.loads(text))
            ends = [token_id for token_id in self.eos_token_ids if token_id in known]
            return LLTokenizer(text, n_vocab=self.size, eos_token=ends or None)
        except (OSError, ValueError) as error:
            message = f"the model's tokenizer cannot be held to a grammar: {_short(str(error))}; use another model"
            raise RequestError(message, code="unsupported_parameter") from None


class Matcher:
    """One output on its way through a grammar.

    Attributes:
        error: why the grammar cannot be followed any further; empty while it can.
    """

    def __init__(self, matcher: "LLMatcher") -> None:
        self.matcher = matcher
        self.error = ""

    def accept(self, token_id: int) -> bool:
        """Go on with the next token; False: the grammar does not allow it, or is too costly, and `error` says so."""
        if not self.matcher.consume_token(token_id) or self.matcher.is_error():
            self.error = _short(self.matcher.get_error()) or f"token {token_id} is not allowed"
        return not self.error

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end can follow."""
        return self.matcher.is_stopped()

    @property
    def ended_by_token(self) -> bool:
        """Whether the last token was an end token, and no part of the text."""
        return self.matcher.stop_reason() == "EndOfSentence"


class Grammar:
    """A compiled grammar, for any number of outputs."""

    def __init__(self, template: "LLMatcher") -> None:
        self._template = template

    def start(self, token_ids: Sequence[int] = ()) -> Matcher:
        """A matcher for an output that already has these tokens.

        Raises:
            RequestError: the grammar does not allow them.
        """
        matcher = Matcher(self._template.deep_copy())
        for token_id in token_ids:
            if not matcher.accept(token_id):
                raise invalid_grammar(f"it does not allow the output so far: {matcher.error}")
        return matcher


class GrammarCompiler:
    """Compiles for one model and remembers what was asked last; any thread may call it."""

    def __init__(self, folder: Path | str, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self.vocabulary = Vocabulary(str(folder), vocab_size, tuple(sorted(eos_token_ids)))
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()
        self._cache: OrderedDict[str, tuple[Grammar, int]] = OrderedDict()
        """With the bytes that each takes, the least recently asked one first."""
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()

    def prepare(self) -> None:
        """Load the tokenizer, which stops all other Python code for a moment, while no streams wait for it."""
        # A model that has none serves all but grammars, and so does a machine without the library.
        with suppress(RequestError, ImportError):
            self._load_tokenizer()

    def find(self, source: str) -> Grammar | None:
        """The grammar, if it is remembered."""
        with self._cache_lock:
            if source not in self._cache:
                return None
            self._cache.move_to_end(source)
            return self._cache[source][0]

    def compile(self, source: str, num_bytes: int = 0) -> Grammar:
        """The grammar of the text `source`, which is known to take `num_bytes` of memory, or it is estimated.

        Raises:
            GrammarError: invalid_grammar, with the library's reason.
        """
        if grammar := self.find(source):
            return grammar
        check_size(source)
        grammar = Grammar(compile_template(self._load_tokenizer(), source))
        self._remember(source, grammar, num_bytes or len(source) * _BYTES_PER_CHARACTER)
        return grammar

    def _load_tokenizer(self) -> "LLTokenizer":
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = self.vocabulary.load()
            return self._tokenizer

    def _remember(self, source: str, grammar: Grammar, num_bytes: int) -> None:
        with self._cache_lock:
            if source in self._cache:  # another thread was faster
                return
            self._cache[source] = grammar, num_bytes
            self._cached_bytes += num_bytes
            while len(self._cache) > _MAX_CACHED_GRAMMARS or self._cached_bytes > _MAX_CACHED_BYTES:
                _, (_, num_freed) = self._cache.popitem(last=False)
                self._cached_bytes -= num_freed


def check_size(source: str) -> None:
    """Refuse a text that is too large to try.

    Raises:
        GrammarError: invalid_grammar.
    """
    if len(source) > MAX_GRAMMAR_BYTES:
        raise invalid_grammar(f"it has {len(source)} characters, the limit is {MAX_GRAMMAR_BYTES}; send a smaller one")


def compile_template(tokenizer: "LLTokenizer", source: str) -> "LLMatcher":
    """Compile without any memory of earlier ones.

    Raises:
        GrammarError: invalid_grammar, with the library's reason.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        step_max_items=_MAX_ITEMS_PER_STEP, max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False
    )
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if matcher.is_error():
        error = matcher.get_error()
        raise invalid_grammar(_short(error), _rule_at_fault(source, error))
    return matcher


def invalid_grammar(reason: str, rule: str = "") -> GrammarError:
    """The error of a grammar that cannot be compiled or followed."""
    return GrammarError(f"the grammar of the output cannot be used: {reason}", rule)


def param_of(error: RequestError, params: SamplingParams) -> str | None:
    """The request field that an error of a job names."""
    if error.code != INVALID_GRAMMAR:
        return error.param
    rule = error.rule if isinstance(error, GrammarError) else ""
    return params.grammar_params.get(rule, params.grammar_param) or None


def _rule_at_fault(source: str, error: str) -> str:
    """Where the text of an error places it; a grammar within the grammar counts as a whole."""
    from llguidance import LLMatcher

    place = _PLACE.match(error)
    try:
        whole, *parts = json.loads(source)["grammars"]
        lines = whole["lark_grammar"].split("\n")
    except (ValueError, KeyError, TypeError):  # Lark alone
        return ""
    for part in parts:
        if LLMatcher.validate_grammar(json.dumps({"grammars": [part]})):
            return str(part["name"])
    if place is None or int(place[1]) > len(lines):
        return ""
    return re.split(r"\W", lines[int(place[1]) - 1], maxsplit=1)[0]


def _token_ids(tokenizer: dict[str, Any]) -> frozenset[int]:
    """What a tokenizer.json has tokens for: a model's configuration may name end tokens that it lacks."""
    vocabulary = tokenizer["model"]["vocab"]
    added = (token["id"] for token in tokenizer.get("added_tokens") or ())
    return frozenset([*(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))), *added])


def _short(message: str) -> str:
    """The reason without the lines of the grammar that it quotes, and on one line."""
    text = " ".join(_QUOTED_LINE.sub("", message.replace("<non-verbose/>", "")).split())
    text = _OPTION_OF_OURS.sub("", _PLACE_OF_OURS.sub("", text))
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"
