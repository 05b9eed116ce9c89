"""Reads the query parameters of a request; every fault is a 400."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from starlette.requests import Request

from ..errors import ApiError
from ..protocol.queries import Query

_MEMBER = re.compile(r"(\w+)\[([^\[\]]*)\]", re.ASCII)
AnyQuery = TypeVar("AnyQuery", bound=Query)


def read_query(request: Request, kind: type[AnyQuery]) -> AnyQuery:
    """The validated parameters of a request.

    Lists are `name=a&name=b` or `name[]=a&name[]=b`, objects are `name[key]=value`.

    Raises:
        ApiError: 400, a parameter is given twice, or in two forms.
        ValidationError: the parameters do not fit `kind`.
    """
    return kind.model_validate(_gather(request.query_params.multi_items()))


def _gather(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Parameters by name, in the form in which a JSON body would have them."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        member = _MEMBER.fullmatch(name)
        if member is None and name != "include":
            if name in values:
                raise _twice(name)
            values[name] = value
        elif member is None or not member[2]:
            entry = values.setdefault(member[1] if member else name, [])
            if not isinstance(entry, list):
                raise _twice(name)
            entry.append(value)
        else:
            entry = values.setdefault(member[1], {})
            if not isinstance(entry, dict) or member[2] in entry:
                raise _twice(name)
            entry[member[2]] = value
    return values


def _twice(name: str) -> ApiError:
    return ApiError(
        f"The query parameter '{name}' is given more than once. Give it once.", code="duplicate_parameter", param=name
    )
