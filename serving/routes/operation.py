"""What a route reads and answers, declared once beside its function; `openapi.py` makes the API's description of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from ..principal import Need
from ..protocol.body import RequestBody

OPERATION = "operation"
"""Key in a route's `openapi_extra`."""
JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route's contract, besides the parameters that its path names."""

    summary: str
    tag: str
    """The group of routes that it is shown with."""
    needs: Need
    """What a request must be allowed to, once there are keys."""
    bodies: tuple[type[RequestBody], ...] = ()
    """The request's body is one of these; empty: it has none."""
    query: type[RequestBody] | None = None
    """The query's parameters."""
    answer: Any = None
    """A type that pydantic can describe; None: anything."""
    media_type: str = JSON
    """Of the answer."""
    events: Any = None
    """The type of a streamed event's data; None: the route does not stream."""
    statuses: tuple[int, ...] = (200,)
    """Of answers that are no errors."""
    unavailable: Any = None
    """The type of the answer with status 503 where it is not an error's."""
    is_limited: bool = False
    """It calls a model: the limits of the client's key hold for it."""


def documented(
    summary: str,
    *,
    tag: str,
    needs: Need,
    body: type[RequestBody] | tuple[type[RequestBody], ...] = (),
    query: type[RequestBody] | None = None,
    answer: Any = None,
    media_type: str = JSON,
    events: Any = None,
    statuses: tuple[int, ...] = (200,),
    unavailable: Any = None,
    is_limited: bool = False,
) -> dict[str, Any]:
    """The keyword arguments of a FastAPI route that carry an `Operation`, whose fields these are."""
    operation = Operation(
        summary=summary,
        tag=tag,
        needs=needs,
        bodies=body if isinstance(body, tuple) else (body,),
        query=query,
        answer=answer,
        media_type=media_type,
        events=events,
        statuses=statuses,
        unavailable=unavailable,
        is_limited=is_limited,
    )
    return {"response_model": None, "openapi_extra": {OPERATION: operation}}


def declared(routers: Iterable[APIRouter]) -> Iterator[tuple[APIRoute, Operation]]:
    """Every route with its contract.

    Raises:
        ValueError: a route declares nothing.
    """
    for router in routers:
        for route in router.routes:
            operation = (getattr(route, "openapi_extra", None) or {}).get(OPERATION)
            if not isinstance(route, APIRoute) or operation is None:
                raise ValueError(f"{route} has no description: give its decorator `**documented(...)`")
            yield route, operation
