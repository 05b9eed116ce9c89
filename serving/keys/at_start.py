"""Sees at the start that a server which other machines reach is not open by mistake."""

import logging

from ..settings import Settings, SettingsError
from .key_file import KEY_FILE, KeyFile

_log = logging.getLogger(__name__)


def check_keys(settings: Settings, *, on_loopback: bool) -> None:
    """Compare the keys there are with who reaches the server.

    Raises:
        SettingsError: other machines reach it, nobody has ever made a key, and that is not said to be wanted.
        KeyFileError: the keys cannot be read.
    """
    file = KeyFile(settings.home / KEY_FILE)
    keys = file.read()
    file.close()
    num_valid = sum(key.revoked_at is None for key in keys)
    if not keys and settings.auth and not on_loopback:
        raise SettingsError(
            f"host is {settings.host!r}, which other machines reach, and there are no API keys: make one with "
            "`penstock keys add NAME`, or say --no-auth to serve everybody who reaches it"
        )
    if num_valid and not settings.auth:
        _log.warning("--no-auth changes nothing: there are API keys (%d), so every request needs one", num_valid)
    elif keys and not num_valid and settings.auth:
        _log.warning("all API keys are revoked, so every request is refused; `penstock keys add NAME` makes a new one")
