"""Decides who comes in, and as whom, by the headers of a request and the keys there are."""

from starlette.datastructures import Headers

from ..errors import ApiError
from ..principal import EVERYBODY, Principal
from .key import digest, id_of
from .local_names import check_sender
from .presented import key_in
from .ring import KeyRing

UNAUTHORIZED = 401


def anybody(headers: Headers) -> Principal:
    """Lets everybody in: keys only tell apart who asks. Clients that need no key send an empty one or none."""
    key = key_in(headers)
    return Principal(id_of(digest(key))) if key else EVERYBODY


class Doorkeeper:
    """Knows the keys.

    Args:
        ring: the keys.
        refuses_pages: while there are no keys, refuse what may come from a page of the web, see `local_names`.
    """

    def __init__(self, ring: KeyRing, *, refuses_pages: bool) -> None:
        self._ring = ring
        self._refuses_pages = refuses_pages

    def identify(self, headers: Headers) -> Principal:
        """Who sends a request.

        Raises:
            ApiError: 401, it needs a key that is valid; 403, it may be a browser's, see `local_names`.
        """
        if self._ring.is_open:
            if self._refuses_pages:
                check_sender(headers)
            return anybody(headers)
        key = key_in(headers)
        if not key:
            raise _unauthorized("You have sent no API key.", "")
        key_digest = digest(key)
        principal = self._ring.find(key_digest)
        if principal is None:
            what = "has been revoked" if self._ring.was_revoked(key_digest) else "is not known here"
            raise _unauthorized(f"The API key that you have sent {what}.", ', error="invalid_token"')
        return principal


def _unauthorized(what: str, challenge: str) -> ApiError:
    return ApiError(
        f"{what} Send a valid one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'; the server's operator makes one "
        "with `penstock keys add NAME`.",
        status=UNAUTHORIZED,
        code="invalid_api_key",
        headers={"www-authenticate": f'Bearer realm="penstock"{challenge}'},
    )
