"""Which requests may come from a page of the web: a browser sends them to this machine too, whoever wrote the page.

A server without keys on loopback trusts whoever can reach it. A page of the internet can, in two ways: it posts across
sites, which browsers mark with the page's `Origin`; or it gives its own name this machine's address (DNS rebinding),
and then that name is the `Host`. So both must be names that nobody on the internet can have, unless --no-auth says that
everybody may come.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from ..errors import ApiError

_PRIVATE_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa")
"""Reserved names; the third is how containers call the machine that they run on."""


def check_sender(headers: Headers) -> None:
    """Refuse what may be a browser's request in the name of some page.

    Raises:
        ApiError: 403.
    """
    host = headers.get("host", "")
    if host and not _is_private(host):
        raise _refusal(f"the Host header is '{host[:100]}', a name that others can have", "host_not_allowed")
    origin = headers.get("origin", "")
    scheme, _, site = origin.partition("://")
    if origin == "null" or (scheme in ("http", "https") and not _is_private(site)):
        raise _refusal(f"it comes from a page of '{origin[:100]}'", "origin_not_allowed")


def _is_private(authority: str) -> bool:
    """Whether a name, perhaps with a port, is an address, this machine's, or one of a private network."""
    try:
        name = (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if "." not in name:
        return True  # also an IPv6 address, which has lost its brackets
    if name.endswith(_PRIVATE_ENDINGS):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(why: str, code: str) -> ApiError:
    return ApiError(
        f"This server has no API keys, so it answers no pages of the web, and {why}. Call it as localhost or by its "
        "address, or have the server's operator make a key with `penstock keys add NAME`, and send that. Behind a "
        "proxy that decides who may come, it is to be started with --no-auth.",
        status=403,
        code=code,
    )
