"""The opaque strings of reasoning and compaction items: base64 of a text behind a mark, encoded and not encrypted.

Clients hand them back unread; here they carry what a server without a store must find again.
"""

import base64
import binascii
from typing import Literal

Kind = Literal["reasoning", "compaction"]


def seal(kind: Kind, text: str) -> str:
    """A text as an opaque string."""
    return f"penstock-{kind}-1:{base64.urlsafe_b64encode(text.encode()).decode()}"


def unseal(kind: Kind, sealed: str) -> str | None:
    """The text again; None for what another server wrote."""
    mark, _, encoded = sealed.partition(":")
    if mark != f"penstock-{kind}-1":
        return None
    try:
        return base64.b64decode(encoded, altchars="-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
