"""The key that a request presents."""

from starlette.datastructures import Headers


def key_in(headers: Headers) -> str:
    """The key in `Authorization: Bearer` or `x-api-key`; "": there is none, or an empty one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    return key or headers.get("x-api-key", "").strip()
