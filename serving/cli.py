"""The command `penstock`: finds the subcommand, turns its flags into settings and its errors into one line.

The flags of `penstock serve` are made from the fields of `Settings`, so no flag can exist without its environment
variable and its key in the file. pydantic-settings could parse flags too, but it joins the MODEL arguments with commas,
which breaks paths that have one, and does not take flags between them.
"""

import argparse
import importlib
import sys
from importlib.metadata import version
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from .settings import Settings, SettingsError, load_settings

_COMMANDS = {
    "serve": "serve models; without arguments, two small starter models on http://127.0.0.1:1234",
    "chat": "chat with a model of a running server",
    "pull": "fetch a model onto this machine",
    "ls": "list the models on this machine",
    "rm": "delete a model from this machine",
    "ps": "list the models in the server's memory",
    "load": "load a model into the server's memory",
    "unload": "unload a model from the server's memory",
    "status": "say whether a server runs, and what it is doing",
    "keys": "make, list and revoke API keys",
    "log": "show the server's log",
    "bench": "load a server as many clients would, and measure what they feel",
}

_USAGE = """\
usage: penstock [--version] [--help] COMMAND ...

Serve local models to a whole team over the OpenAI HTTP API.

commands:
{commands}

`penstock COMMAND --help` explains a command.
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command; returns the exit status, 2 for wrong usage."""
    match sys.argv[1:] if arguments is None else arguments:
        case ["serve", *rest]:
            return _serve(rest)
        case ["bench", *rest]:
            from .bench.cli import run

            return run(rest)
        case [command, *rest] if command in _COMMANDS:
            module = importlib.import_module(f".commands.{command}", __package__)
            status: int = module.run(rest)
            return status
        case ["--version" | "-V"]:
            print(f"penstock {version('penstock')}")
            return 0
        case ["--help" | "-h"]:
            print(_usage(), end="")
            return 0
        case []:
            print(_usage(), end="", file=sys.stderr)
        case [unknown, *_]:
            known = ", ".join(_COMMANDS)
            print(f"penstock: unknown command {unknown!r}; the commands are {known}", file=sys.stderr)
    return 2


def _usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:8} {text}" for name, text in _COMMANDS.items()))


def _serve(arguments: list[str]) -> int:
    parser = make_serve_parser()
    try:
        flags = vars(parser.parse_intermixed_args(arguments))
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        return 2 if end.code else 0
    if not flags["models"]:
        del flags["models"]  # an empty list would win over environment and file
    try:
        settings = load_settings(flags)
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"penstock serve: error: {line}", file=sys.stderr)
        return 2
    from .server import serve

    return serve(settings)


def make_serve_parser() -> argparse.ArgumentParser:
    """The parser of `penstock serve`: one option for each setting, each absent from the result unless given.

    Values stay text here; `Settings` checks those of flags, environment and file alike.
    """
    parser = argparse.ArgumentParser(
        prog="penstock serve",
        usage="penstock serve [MODEL ...] [options]",
        description="Serve models over the OpenAI HTTP API until Ctrl-C.",
        epilog="Every option is also an environment variable (--max-num-seqs is PENSTOCK_MAX_NUM_SEQS) and a key of "
        "the --config file (max_num_seqs). An option wins over the environment, and that over the file.",
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        if name == "models":
            parser.add_argument(name, nargs="*", metavar="MODEL", help=field.description)
        else:
            parser.add_argument("--" + name.replace("_", "-"), **_option(name, field))
    return parser


def _option(name: str, field: FieldInfo) -> dict[str, Any]:
    """The keywords with which argparse gets this setting."""
    is_silent = field.default in (None, "", 0, {}) or field.default_factory is not None
    shown_default = "" if is_silent else f" (default: {field.default})"
    option: dict[str, Any] = {
        "dest": name,
        "default": argparse.SUPPRESS,
        "help": f"{field.description}{shown_default}".replace("%", "%%"),
    }
    if field.annotation is bool:
        return option | {"action": argparse.BooleanOptionalAction}
    if get_origin(field.annotation) is Literal:
        return option | {"metavar": "|".join(get_args(field.annotation))}
    if get_origin(field.annotation) is dict:
        option["action"] = "append"
    extra = field.json_schema_extra
    return option | {"metavar": extra["metavar"] if isinstance(extra, dict) else "N"}


if __name__ == "__main__":
    sys.exit(main())
