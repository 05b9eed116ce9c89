"""The form that an answer's text must have, and the grammar that makes the model keep to it."""

from dataclasses import dataclass
from typing import Literal

FormatKind = Literal["json_object", "json_schema", "regex", "lark", "choice"]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a request wants its text to be; no object of this kind means free text."""

    kind: FormatKind
    source: str
    """json_schema: the schema as JSON; regex: the expression; lark: the grammar; choice: a JSON list of texts."""
    param: str
    """Dotted path of the request field that errors name."""
