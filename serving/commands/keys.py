"""`penstock keys`: make, list and revoke API keys; a running server follows within two seconds."""

import argparse
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from rich.table import Table

from ..keys.key import Key, digest, new_key
from ..keys.key_file import KEY_FILE, KeyFile, KeyFileError
from ..limits.ledger import LEDGER_FOLDER, usage_today
from ..limits.standing import NOTHING, Usage
from ..principal import Limits
from ..settings import Settings
from .options import CommandError, make_parser, run_command, stdout

_USAGE = """\
usage: penstock keys add NAME [options]
       penstock keys list
       penstock keys revoke NAME|PREFIX

Without any keys a server answers everybody on this machine, and listens for others only with --no-auth. Once there is
a key, every request but that for /health needs one, as `Authorization: Bearer KEY` or `x-api-key: KEY`.
"""
_LIMITS = {
    "requests_per_minute": "requests in a minute",
    "tokens_per_minute": "tokens in a minute, of prompts and answers together",
    "tokens_per_day": "tokens in a day",
    "max_in_flight": "requests at the same time",
}
_SHORT = {
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "tokens_per_day": "tokens/day",
    "max_in_flight": "in flight",
}
MAX_WEIGHT = 1000.0
MAX_LIMIT = 10**15
MAX_NAME_LENGTH = 64
MIN_CHOSEN = 32
"""Characters: what is kept of a key is no protection for one that can be guessed."""
MAX_CHOSEN = 256
Number = TypeVar("Number", int, float)


def run(arguments: list[str]) -> int:
    """Add, list or revoke."""
    match arguments:
        case ["add", *rest]:
            return run_command(_add_parser(), rest, _add)
        case ["list", *rest]:
            return run_command(make_parser("keys list", "List the API keys.", talks=False), rest, _list)
        case ["revoke", *rest]:
            parser = make_parser("keys revoke", "Revoke an API key; what it has running is finished.", talks=False)
            parser.add_argument("key", metavar="NAME|PREFIX", help="its name, or its first characters")
            return run_command(parser, rest, _revoke)
        case ["--help" | "-h"]:
            print(_USAGE, end="")
            return 0
    print(_USAGE, end="", file=sys.stderr)
    return 2


def _add_parser() -> argparse.ArgumentParser:
    parser = make_parser("keys add", "Make an API key and print it; it is not kept, only a hash of it.", talks=False)
    parser.add_argument("name", type=_name, metavar="NAME", help="whose it is, or what for")
    parser.add_argument(
        "--scope",
        dest="scopes",
        action="append",
        choices=("use", "embeddings", "admin"),
        help="what it may do; may be repeated. use: call models; embeddings: only embed, score and tokenize; admin: "
        "everything, as loading models and reading /metrics (default: use)",
    )
    parser.add_argument(
        "--weight", type=_weight, default=1.0, metavar="X", help="its share of the device beside others (default: 1)"
    )
    for name, what in _LIMITS.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=_limit, default=0, metavar="N", help=f"{what} (default: no limit)")
    parser.add_argument(
        "--stdin",
        action="store_true",
        help=f"read the key, which is kept elsewhere, from standard input: {MIN_CHOSEN} to {MAX_CHOSEN} characters "
        "from a random source; once more with the same settings changes nothing",
    )
    return parser


def _name(text: str) -> str:
    if not (0 < len(text) <= MAX_NAME_LENGTH and text.isprintable() and text == text.strip()):
        raise argparse.ArgumentTypeError(f"a name has 1 to {MAX_NAME_LENGTH} characters that can be printed")
    return text


def _weight(text: str) -> float:
    return _checked(text, float, 0.001, MAX_WEIGHT)


def _limit(text: str) -> int:
    return _checked(text, int, 0, MAX_LIMIT)


def _checked(text: str, kind: Callable[[str], Number], least: Number, most: Number) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:  # which NaN is not either
        raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' * (kind is int)}number from {least:g} to {most:g}")
    return value


def _add(options: argparse.Namespace, settings: Settings) -> None:
    limits = Limits(**{name: getattr(options, name) for name in _LIMITS})
    chosen = _chosen_key(sys.stdin.read(2 * MAX_CHOSEN)) if options.stdin else ""
    secret, key = new_key(
        options.name, frozenset(options.scopes or ["use"]), options.weight, limits, time.time(), chosen
    )
    with _key_file(settings) as file:
        same = next((other for other in file.read() if other.digest == key.digest), None)
        if same is None:
            file.add(key)
        elif replace(same, created_at=key.created_at, last_used_at=None) != key:
            raise CommandError(
                f"this key was added already, as {same.name!r}: revoked since or with other settings; choose another"
            )
    if options.stdin:
        print(json.dumps(_json(same or key)) if options.json else f"the key of {key.name} ({key.prefix}…) is valid")
        return
    if options.json:
        print(json.dumps(_json(key) | {"key": secret}))
        return
    print(secret)
    print(f"This is the key of {key.name}. Keep it now: it is not shown again.", file=sys.stderr)


def _chosen_key(text: str) -> str:
    key = text.strip()
    if not (MIN_CHOSEN <= len(key) <= MAX_CHOSEN and key.isascii() and key.isprintable() and " " not in key):
        raise CommandError(
            f"the key on standard input has {len(key)} characters; it must have {MIN_CHOSEN} to {MAX_CHOSEN} printable "
            "ones of ASCII, without spaces"
        )
    return key


def _list(options: argparse.Namespace, settings: Settings) -> None:
    with _key_file(settings) as file:
        keys = file.read()
    try:
        usage = usage_today(settings.home / LEDGER_FOLDER)
    except (sqlite3.Error, OSError) as error:
        raise CommandError(f"what the keys have used cannot be read: {error}") from error
    used = [(key, usage.get(key.principal().id, NOTHING)) for key in keys]
    if options.json:
        print(json.dumps([_json(key, today) for key, today in used], indent=2))
    elif not keys:
        print("there are no API keys; `penstock keys add NAME` makes one")
    else:
        stdout().print(_table(used), markup=False)


def _table(used: list[tuple[Key, Usage]]) -> Table:
    table = Table()
    for heading in ("Name", "Key", "Scopes", "Weight", "Limits", "Used today", "Created", "Last used", "Revoked"):
        table.add_column(heading)
    for key, today in used:
        limits = [f"{limit:,} {_SHORT[name]}" for name in _LIMITS if (limit := getattr(key.limits, name))]
        table.add_row(
            key.name,
            f"{key.prefix}…",
            ", ".join(sorted(key.scopes)),
            f"{key.weight:g}",
            ", ".join(limits) or "–",
            f"{today.num_requests:,} requests, {today.num_tokens:,} tokens" if today.num_requests else "–",
            *(_minute(moment) for moment in (key.created_at, key.last_used_at, key.revoked_at)),
        )
    return table


def _minute(moment: float | None) -> str:
    return "–" if moment is None else datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")


def _revoke(options: argparse.Namespace, settings: Settings) -> None:
    with _key_file(settings) as file:
        key = _find([key for key in file.read() if key.revoked_at is None], options.key)
        file.revoke(key, time.time())
    print(json.dumps({"revoked": key.name}) if options.json else f"the key of {key.name} ({key.prefix}…) is revoked")


def _find(valid: list[Key], wanted: str) -> Key:
    """The key of a name, or the only one that begins so."""
    found = [key for key in valid if wanted == key.name or digest(wanted) == key.digest]
    found = found or [key for key in valid if key.prefix.startswith(wanted)]
    if len(found) != 1:
        names = ", ".join(f"{key.name} ({key.prefix}…)" for key in found or valid) or "none"
        what = "several valid keys begin so" if found else "no valid key is called so or begins so"
        raise CommandError(f"{what}; there are: {names}")
    return found[0]


@contextmanager
def _key_file(settings: Settings) -> Iterator[KeyFile]:
    with closing(KeyFile(settings.home / KEY_FILE)) as file:
        try:
            yield file
        except KeyFileError as error:
            raise CommandError(str(error)) from error


def _json(key: Key, today: Usage = NOTHING) -> dict[str, object]:
    """What may be shown of a key, with what it has used since midnight in UTC."""
    return {
        "name": key.name,
        "prefix": key.prefix,
        "scopes": sorted(key.scopes),
        "weight": key.weight,
        **{name: getattr(key.limits, name) for name in _LIMITS},
        "requests_today": today.num_requests,
        "prompt_tokens_today": today.num_prompt_tokens,
        "output_tokens_today": today.num_output_tokens,
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }
