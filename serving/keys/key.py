"""One API key as it is kept: what it allows and how it is told apart, without the key itself.

A key is 40 letters and digits from the system's random source, 238 bits, or was chosen with as much care. Nobody finds
it by guessing, so that a plain SHA-256 of it is kept: what makes password hashes slow would only make requests slow.
"""

import hashlib
import secrets
import string
from dataclasses import dataclass

from ..principal import ALL_SCOPES, Limits, Principal, Scope

KEY_START = "sk-penstock-"
_ALPHABET = string.ascii_letters + string.digits
_NUM_RANDOM = 40
_NUM_SHOWN = 6
_HOLDS: dict[Scope, frozenset[Scope]] = {
    "use": frozenset({"use", "embeddings"}),
    "embeddings": frozenset({"embeddings"}),
    "admin": ALL_SCOPES,
}
"""What a scope that was given allows: the wider ones hold the narrower."""


@dataclass(frozen=True, slots=True)
class Key:
    """A row of the key file. Times are Unix seconds."""

    digest: str
    prefix: str
    """The key's first characters, by which people know it again."""
    name: str
    scopes: frozenset[Scope]
    """As given."""
    weight: float
    limits: Limits
    created_at: float
    last_used_at: float | None = None
    """To within a minute or two."""
    revoked_at: float | None = None

    def principal(self) -> Principal:
        """Whom the key lets in."""
        scopes = frozenset[Scope]().union(*(_HOLDS[scope] for scope in self.scopes))
        return Principal(id_of(self.digest), self.name, self.weight, scopes, self.limits)


def random_secret() -> str:
    """A key that nobody has seen."""
    return KEY_START + "".join(secrets.choice(_ALPHABET) for _ in range(_NUM_RANDOM))


def new_key(
    name: str, scopes: frozenset[Scope], weight: float, limits: Limits, now: float, secret: str = ""
) -> tuple[str, Key]:
    """A key and what is kept of it; `secret` is one that somebody has chosen, "": a random one."""
    secret = secret or random_secret()
    prefix = secret[: _NUM_SHOWN + (len(KEY_START) if secret.startswith(KEY_START) else 0)]
    return secret, Key(digest(secret), prefix, name, scopes, weight, limits, now)


def digest(secret: str) -> str:
    """SHA-256 of a key, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def id_of(key_digest: str) -> str:
    """The principal's id: the beginning of its key's digest, long enough that no two keys share it."""
    return key_digest[:32]
