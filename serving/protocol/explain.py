"""Turns a pydantic ValidationError into what OpenAI's error body says: message, code and param."""

import reprlib
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_TYPE_NAMES = {
    "bool": "a boolean",
    "dict": "an object",
    "float": "a number",
    "int": "an integer",
    "list": "an array",
    "model": "an object",
    "string": "a string",
}
_JSON_NAMES: dict[type, str] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "an integer",
    list: "an array",
    str: "a string",
    type(None): "null",
}
_LIMITS = {
    "greater_than_equal": ("ge", "below the minimum of", "or more", "below_min_value"),
    "greater_than": ("gt", "not above", "more than", "below_min_value"),
    "less_than_equal": ("le", "above the maximum of", "or less", "above_max_value"),
    "less_than": ("lt", "not below", "less than", "above_max_value"),
}
_LENGTHS = {
    "too_short": ("min_length", "array", "too short", "at least", "below_min_length"),
    "too_long": ("max_length", "array", "too long", "at most", "above_max_length"),
    "string_too_short": ("min_length", "string", "too short", "at least", "below_min_length"),
    "string_too_long": ("max_length", "string", "too long", "at most", "above_max_length"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request body."""

    message: str
    code: str
    param: str | None
    """Dotted path, such as `messages.0.content`; None: the body as a whole."""


def explain(error: ValidationError) -> Problem:
    """The first problem of a body, as OpenAI reports one at a time."""
    return _explain(error.errors(include_url=False)[0])


def preview(value: object) -> str:
    """A value as it may stand in a message: short, however large it is."""
    text = reprlib.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _explain(detail: ErrorDetails) -> Problem:
    kind: str = detail["type"]
    ctx: dict[str, Any] = detail.get("ctx", {})
    value = detail["input"]
    path = [str(step) for step in detail["loc"] if not str(step).startswith("(")]  # unions' tags are in parentheses
    if "param" in ctx:  # a model's own check names the field below its own place
        path.append(str(ctx["param"]))
    param = ".".join(path) or None
    where = f"'{param}'" if param else "the request body"
    if kind == "missing":
        return Problem(f"Missing required parameter: {where}.", "missing_required_parameter", param)
    if kind in _LIMITS:
        bound, is_what, remedy, code = _LIMITS[kind]
        number = "integer" if isinstance(ctx[bound], int) else "decimal"
        limit = f"{ctx[bound]:g}" if number == "decimal" else ctx[bound]
        send = f"{remedy} {limit}" if bound in ("gt", "lt") else f"{limit} {remedy}"
        return Problem(f"Invalid {where}: {value} is {is_what} {limit}. Send {send}.", f"{number}_{code}", param)
    if kind in _LENGTHS:
        bound, noun, is_what, remedy, code = _LENGTHS[kind]
        limit, actual = ctx[bound], len(value) if isinstance(value, list | str) else ctx.get("actual_length")
        unit = "items" if noun == "array" else "characters"
        code = f"empty_{noun}" if actual == 0 else f"{noun}_{code}"
        message = f"Invalid {where}: an {noun}" if noun == "array" else f"Invalid {where}: a {noun}"
        return Problem(f"{message} of {actual} {unit} is {is_what}. Send {remedy} {limit}.", code, param)
    if kind == "literal_error":
        return Problem(
            f"Invalid value for {where}: {preview(value)}. Send one of: {ctx['expected']}.", "invalid_value", param
        )
    if kind == "finite_number":
        return Problem(f"Invalid {where}: {value} is not a finite number. Send one.", "invalid_value", param)
    wanted = _TYPE_NAMES.get(kind.partition("_")[0])
    if wanted and kind.endswith(("_type", "_from_float", "_parsing")):
        got = _JSON_NAMES.get(type(value), "something else")
        return Problem(
            f"Invalid type for {where}: expected {wanted}, but got {got} ({preview(value)}).", "invalid_type", param
        )
    return Problem(f"Invalid {where}: {detail['msg']}", kind, param)  # our own checks: their type is the code
