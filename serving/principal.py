"""Whose request it is: what the gate has found out about its sender, for everything behind the gate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Scope = Literal["use", "embeddings", "admin"]
"""What a key may do: call models and keep what they said; only embed, score and tokenize; look after the server too."""
Need = Scope | Literal["key", "nothing"]
"""What a route asks of a request: a scope, any valid key, or nothing at all."""
ALL_SCOPES: frozenset[Scope] = frozenset({"use", "embeddings", "admin"})
PRINCIPAL = "principal"
"""Key in a scope's state, where the gate puts the Principal."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one principal may ask for; 0: as much as it likes."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    max_in_flight: int = 0
    """Requests at the same time."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    id: str = ""
    """By this the store and the scheduler know it: of its key, but does not give the key away. "": has no key."""
    name: str = ""
    """For people; "": nobody has given it one."""
    weight: float = 1.0
    """Its share of the device, in proportion to those of the others."""
    scopes: frozenset[Scope] = ALL_SCOPES
    limits: Limits = Limits()


EVERYBODY = Principal()
"""Everybody without a key, where none is needed."""
STRANGER = Principal(scopes=frozenset())
"""Who would not be let in, at a route that needs nothing."""


def principal_of(exchange: Mapping[str, Any]) -> Principal:
    """Who sent a request, given the request or its ASGI scope."""
    principal: Principal = exchange["state"][PRINCIPAL]
    return principal
