"""The form that an answer's text must have, and the grammar that makes the model keep to it.

Grammars are llguidance's: a list of Lark grammars, the first of which is the whole. `grammar_of` makes one of a format
alone; `lark_rule` makes a format a rule of a larger grammar, which may put reasoning before it or tool calls beside it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.scheduler.errors import RequestError

from .json_schema import compilable

FormatKind = Literal["json_object", "json_schema", "regex", "lark", "choice"]

MAX_GRAMMAR_BYTES = 64 * 1024
"""Of a regular expression or a grammar."""
MAX_CHOICES = 1024
MAX_GBNF_RULES = 256
"""Converting a GBNF grammar takes a time that grows with the square of this."""

_LARK = re.compile(r"^\s*(?:%llguidance\b|start\s*(?:\[[^\]]*\]\s*)?:(?!:=))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a request wants its text to be; no object of this kind means free text."""

    kind: FormatKind
    source: str
    """json_schema: the schema as JSON; regex: the expression; lark: the grammar; choice: a JSON list of texts."""
    param: str
    """Dotted path of the request field that errors name."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output is held to."""

    source: str
    """See `SamplingParams.grammar`; "": nothing."""
    param: str = ""
    """The request field that errors about it name."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Those of its parts, see `SamplingParams.grammar_params`."""
    fallback: str = ""
    """See `SamplingParams.grammar_fallback`."""


ANYTHING = Grammar("")


def grammar_of(output_format: OutputFormat) -> str:
    """The grammar of the whole output, for `SamplingParams.grammar`.

    Raises:
        RequestError: the format is too large or cannot be enforced. What only the compiler finds, the worker reports.
    """
    if output_format.kind == "lark":
        return join_grammars(_lark_text(output_format), [])
    rule, others = lark_rule(output_format, "start")
    return join_grammars(rule, others)


def lark_rule(output_format: OutputFormat, name: str) -> tuple[str, list[dict[str, Any]]]:
    """A rule of a larger Lark grammar that matches the format.

    Args:
        output_format: what the rule stands for.
        name: of the rule, in lower case.

    Returns:
        The rule's text, a line or more without a line end, and further grammars for `join_grammars` that it refers to.

    Raises:
        RequestError: as for `grammar_of`.
    """
    source, param = output_format.source, output_format.param
    match output_format.kind:
        case "json_object":
            return f"{name}: {lark_json({'type': 'object'}, param)}", []
        case "json_schema":
            return f"{name}: {lark_json(json.loads(source), param)}", []
        case "choice":
            return f"{name}: {' | '.join(map(lark_string, _choices(source, param)))}", []
        case "regex":
            _check_size(output_format, "regular expression")
            return f"{name}: {lark_regex(source)}", []
        case "lark":
            return f"{name}: @{name}_grammar", [{"name": f"{name}_grammar", "lark_grammar": _lark_text(output_format)}]


def join_grammars(lark: str, others: Sequence[dict[str, Any]]) -> str:
    """A Lark grammar and those that it refers to by @name as one grammar."""
    return json.dumps({"grammars": [{"lark_grammar": lark}, *others]}, ensure_ascii=False)


def lark_json(schema: object, param: str) -> str:
    """An expression of Lark that matches JSON of the schema.

    Raises:
        RequestError: the schema cannot be enforced; it names `param`.
    """
    return f"%json {json.dumps(compilable(schema, param), ensure_ascii=False)}"


def lark_string(text: str) -> str:
    """An expression of Lark that matches the text; it must not be empty."""
    return json.dumps(text, ensure_ascii=False)


def lark_regex(expression: str) -> str:
    """An expression of Lark that matches what the whole regular expression does."""
    escaped = re.sub(r"\\.|/|[\r\n]", _escape, expression, flags=re.DOTALL)
    return f"/{escaped}/"


def _escape(found: re.Match[str]) -> str:
    text = found.group()
    return {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}.get(text, text)


def _choices(source: str, param: str) -> list[str]:
    choices: list[str] = json.loads(source)
    if not choices:
        raise _invalid(param, "there is nothing to choose from. Send at least one text.")
    if len(choices) > MAX_CHOICES:
        raise _invalid(param, f"{len(choices)} choices are more than {MAX_CHOICES}. Send fewer.")
    if not all(choices):
        raise _invalid(param, "a choice is empty. Send texts of at least one character.")
    if len(source) > MAX_GRAMMAR_BYTES:
        raise _invalid(param, f"the choices have {len(source)} bytes, the limit is {MAX_GRAMMAR_BYTES}. Send less.")
    return choices


def _lark_text(output_format: OutputFormat) -> str:
    """The client's grammar in Lark; one of llama.cpp's in GBNF is converted."""
    _check_size(output_format, "grammar")
    source, param = output_format.source, output_format.param
    if _LARK.search(source):
        return source
    if "::=" not in source:
        raise _invalid(param, "it is neither a Lark grammar with a 'start:' rule nor a GBNF grammar with 'root ::='.")
    if source.count("::=") > MAX_GBNF_RULES:
        raise _invalid(param, f"a GBNF grammar may have {MAX_GBNF_RULES} rules. Send fewer, or a Lark grammar.")
    from llguidance.gbnf_to_lark import gbnf_to_lark  # few requests need it

    try:
        return gbnf_to_lark(source)
    except RecursionError:
        raise _invalid(param, "the GBNF grammar is nested too deeply. Use more rules.") from None
    except Exception as error:  # the converter raises its own kind and bare Exception
        raise _invalid(param, f"the GBNF grammar cannot be read: {str(error)[:200]}") from None


def _check_size(output_format: OutputFormat, what: str) -> None:
    size = len(output_format.source.encode())
    if size == 0:
        raise _invalid(output_format.param, f"the {what} is empty. Send one, or leave it out.")
    if size > MAX_GRAMMAR_BYTES:
        raise _invalid(
            output_format.param, f"the {what} has {size} bytes, the limit is {MAX_GRAMMAR_BYTES}. Send a smaller one."
        )


def _invalid(param: str, message: str) -> RequestError:
    return RequestError(f"Invalid '{param}': {message}", code="invalid_grammar", param=param)
