"""Where chat templates run: jinja's immutable sandbox, with bounds on time, on the text written and on every value.

A template comes with a model's files, and a thread that renders one cannot be stopped from outside. So the bounds are
looked at from inside: in each round of a loop, at each call, and around whatever makes a value larger.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import datetime
from functools import wraps
from json import dumps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE = 2**20
"""Characters of a template; the longest of well-known models have some ten thousand."""
MAX_CHARACTERS = 2**26
"""Of a prompt, and items of any value: twice what the largest body has."""
_MAX_NUMBER = 2**16  # as an argument: what pads, indents or repeats makes a text longer by that
_MAX_BITS = 2**10  # of a number
_WIDTH = re.compile(r"%[^a-zA-Z%]*(\*|\d{6})|\{[^}]*\d{6}")  # a field of so many characters, or of as many as asked for
_ENDLESS = frozenset({"expandtabs", "translate", "maketrans", "format_map"})  # methods that no prompt needs
_ALLOWANCE = "the allowance of this rendering"  # no name that a template could write


class TemplateLimitError(jinja2.TemplateError):
    """A template does more than it may."""


class TemplateTimeError(TemplateLimitError):
    """It takes more time than it may."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates, with the filters and functions that transformers gives them."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
        self.filters[_rounds.__name__] = _rounds
        self.filters[_grown.__name__] = _grown
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def compile_bounded(self, source: str) -> jinja2.Template:
        """A template whose loops look at its time.

        Raises:
            TemplateError: it is too long, or no template.
        """
        if len(source) > MAX_SOURCE:
            raise TemplateLimitError(f"a chat template of {len(source)} characters; the limit is {MAX_SOURCE}")
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _rounds.__name__, [], [], None, None)
        for joined in list(tree.find_all(nodes.Concat)):
            joined.nodes = [nodes.Filter(nodes.Concat(joined.nodes), _grown.__name__, [], [], None, None)]
        tree.set_environment(self)
        return self.from_string(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Besides what the sandbox forbids, the methods of texts that make them longer without bounds."""
        return attr not in _ENDLESS and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call of a function, method or macro."""
        _look_at_the_time(context)
        method = getattr(function, "__wrapped__", function)  # jinja wraps `format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            _check_arguments(name, (owner, *arguments), named)
        return _grown(super().call(context, function, *arguments, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operation; the size of its result is known before."""
        if operator == "+":
            return _grown(left + right)
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(value, "__len__") and len(value) * times > MAX_CHARACTERS:
                    raise _too_large()
        elif operator == "%" and isinstance(left, str):
            _check_width(left)
        if isinstance(left, int) and isinstance(right, int) and _num_bits(operator, left, right) > _MAX_BITS:
            raise TemplateLimitError("it computes a number of more than 300 digits")
        return _grown(super().call_binop(context, operator, left, right))


def render_bounded(template: jinja2.Template, values: Mapping[str, Any], max_seconds: float) -> str:
    """What a template of the sandbox writes.

    Args:
        template: from `Sandbox.compile_bounded`.
        values: its variables.
        max_seconds: processor time of this thread that it may use.

    Raises:
        TemplateTimeError: it takes longer.
        TemplateLimitError: it does too much otherwise.
        Exception: whatever it fails with.
    """
    end = time.thread_time() + max_seconds
    pieces: list[str] = []
    num_characters = 0
    for piece in template.generate({**values, _ALLOWANCE: end}):
        num_characters += len(piece)
        if num_characters > MAX_CHARACTERS:
            raise TemplateLimitError(f"it writes more than {MAX_CHARACTERS} characters")
        pieces.append(piece)
    return "".join(pieces)


def _look_at_the_time(context: Context) -> None:
    if time.thread_time() > context[_ALLOWANCE]:
        raise TemplateTimeError("it takes too long")


@jinja2.pass_context
def _rounds(context: Context, items: Iterable[Any]) -> Iterable[Any]:
    """What a loop goes through."""
    if isinstance(items, jinja2.Undefined):
        return items
    return _Rounds(context, items)


class _Rounds:
    """Items that are as many as they were, since loops ask for their number."""

    def __init__(self, context: Context, items: Iterable[Any]) -> None:
        self._context = context
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _look_at_the_time(self._context)
            yield item

    def __len__(self) -> int:
        if not isinstance(self._items, Sized):
            raise TypeError  # jinja counts them itself
        return len(self._items)


def _grown(value: Any) -> Any:
    """A new value, if it is not too large."""
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_CHARACTERS:
        raise _too_large()
    return value


def _too_large() -> TemplateLimitError:
    return TemplateLimitError(f"it makes a value of more than {MAX_CHARACTERS} characters or items")


def _num_bits(operator: str, left: int, right: int) -> int:
    """At most, of a result."""
    if operator == "**":
        return left.bit_length() * max(0, right)
    return left.bit_length() + right.bit_length()


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with bounds; how jinja hands it its context stays the same."""

    @wraps(function)
    def filtered(*arguments: Any, **named: Any) -> Any:
        _check_arguments(name, arguments, named)
        return _grown(function(*arguments, **named))

    return filtered


def _check_arguments(name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse arguments of a filter or of a text's method that would make a huge text."""
    for number in (*arguments[1:], *named.values()):
        if isinstance(number, int) and abs(number) > _MAX_NUMBER:
            raise TemplateLimitError(f"it calls {name} with {number}; the limit is {_MAX_NUMBER}")
    texts = [value for value in (*arguments, *named.values()) if isinstance(value, str)]
    if name == "format" and texts:
        _check_width(texts[0])
    elif name == "replace" and len(texts) > 2:
        text, old, new = texts[:3]
        if len(new) > len(old) and text.count(old) * len(new) > MAX_CHARACTERS:
            raise _too_large()
    elif name == "join":
        separator = max(map(len, texts), default=0)
        for items in (value for value in arguments if isinstance(value, list | tuple)):
            if sum(separator + len(item) for item in items if isinstance(item, str)) > MAX_CHARACTERS:
                raise _too_large()


def _check_width(form: str) -> None:
    if _WIDTH.search(form):
        raise TemplateLimitError("it formats a text with a field that is too wide")


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's tokens for training; for serving its content is all that counts."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters, which would reach the model."""
    return dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
