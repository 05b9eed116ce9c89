"""The key that a request presents, and the id that stands for it."""

import hashlib

from starlette.datastructures import Headers


def key_in(headers: Headers) -> str:
    """The key in `Authorization: Bearer` or `x-api-key`; "": there is none, or an empty one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    return key or headers.get("x-api-key", "").strip()


def digest(key: str) -> str:
    """SHA-256 of a key, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def id_of(key_digest: str) -> str:
    """The principal's id: the beginning of its key's digest, long enough that no two keys share it."""
    return key_digest[:32]
