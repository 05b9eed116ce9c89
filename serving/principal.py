"""Whose request it is: by this name, stored answers of one key are kept from all others."""

import hashlib

from starlette.datastructures import Headers

ANONYMOUS = ""
"""Everybody without a key."""


def principal_of(headers: Headers) -> str:
    """A name for the key in `Authorization: Bearer` or `x-api-key` that does not give the key away.

    Clients that need no key send an empty one or none: they are all ANONYMOUS.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    key = key or headers.get("x-api-key", "").strip()
    return hashlib.sha256(key.encode()).hexdigest()[:32] if key else ANONYMOUS
