"""Reads off a request's fields which form its text must have."""

import json
from typing import Any

from penstock.scheduler.errors import RequestError

from ..protocol.output_format import OutputFormatFields, ResponseFormat, StructuredOutputs
from ..text.output_format import OutputFormat


def resolve_output_format(body: OutputFormatFields) -> OutputFormat | None:
    """What the body wants its text to be; None: free text.

    Raises:
        RequestError: a schema that came as text is no JSON.
    """
    if body.response_format is not None and body.response_format.type != "text":
        return _of_response_format(body.response_format)
    if body.structured_outputs is not None:
        return _of_structured_outputs(body.structured_outputs)
    schema, schema_param = _first(json_schema=body.json_schema, guided_json=body.guided_json)
    if schema is not None:
        return format_of_schema(schema, schema_param)
    regex, regex_param = _first(regex=body.regex, guided_regex=body.guided_regex)
    if regex is not None:
        return OutputFormat("regex", regex, regex_param)
    grammar, grammar_param = _first(grammar=body.grammar, guided_grammar=body.guided_grammar)
    if grammar is not None:
        return OutputFormat("lark", grammar, grammar_param)
    choice, choice_param = _first(choice=body.choice, guided_choice=body.guided_choice)
    if choice is not None:
        return OutputFormat("choice", json.dumps(choice), choice_param)
    return None


def _first(**fields: Any) -> tuple[Any, str]:
    """The one that is given, with its name."""
    return next(((value, name) for name, value in fields.items() if value is not None), (None, ""))


def _of_response_format(response_format: ResponseFormat) -> OutputFormat:
    if response_format.json_schema is not None:
        return format_of_schema(response_format.json_schema.schema_, "response_format.json_schema.schema")
    if response_format.schema_ is not None:
        return format_of_schema(response_format.schema_, "response_format.schema")
    return OutputFormat("json_object", "", "response_format")


def _of_structured_outputs(wanted: StructuredOutputs) -> OutputFormat:
    if wanted.json_ is not None:
        return format_of_schema(wanted.json_, "structured_outputs.json")
    if wanted.regex is not None:
        return OutputFormat("regex", wanted.regex, "structured_outputs.regex")
    if wanted.grammar is not None:
        return OutputFormat("lark", wanted.grammar, "structured_outputs.grammar")
    if wanted.choice is not None:
        return OutputFormat("choice", json.dumps(wanted.choice), "structured_outputs.choice")
    return OutputFormat("json_object", "", "structured_outputs.json_object")


def format_of_schema(schema: Any, param: str) -> OutputFormat:
    """The format of a JSON Schema, which may be a text.

    Raises:
        RequestError: the text is no JSON, or the schema is nested too deeply.
    """
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        return OutputFormat("json_schema", json.dumps(schema, ensure_ascii=False), param)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"no JSON: {error}"
        raise RequestError(
            f"Invalid '{param}': the schema is {reason}.", code="invalid_json_schema", param=param
        ) from None
