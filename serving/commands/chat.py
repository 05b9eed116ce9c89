"""`penstock chat`: talk to a model of a running server in the terminal."""

import argparse
import json
import sys
from contextlib import closing, suppress
from typing import Any

from ..settings import Settings
from .client import Server, ServerError
from .options import CommandError, make_parser, run_command, server_of

_HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer."
_DIM, _PLAIN = "\033[2m", "\033[0m"

Message = dict[str, str]


def run(arguments: list[str]) -> int:
    """Talk."""
    parser = make_parser("chat", "Chat with a model of a running server.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="its name; without it: a chat model that is loaded")
    parser.add_argument("--prompt", "-p", metavar="TEXT", help="ask this and print the answer; - reads standard input")
    parser.add_argument("--system", metavar="TEXT", help="what the model is to be or to obey")
    return run_command(parser, arguments, _chat)


def _chat(options: argparse.Namespace, settings: Settings) -> None:
    server = server_of(settings)
    model = options.model or _choose(server)
    start: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    if options.prompt is not None:
        text = sys.stdin.read() if options.prompt == "-" else options.prompt
        answer = _answer(server, model, [*start, {"role": "user", "content": text}], quiet=options.json)
        print(json.dumps({"model": model, "content": answer}) if options.json else "")
        return
    if options.json:
        raise CommandError("--json needs --prompt")
    _converse(server, model, start)


def _choose(server: Server) -> str:
    models = [entry for entry in server.models() if entry["type"] == "llm"]
    if not models:
        raise CommandError("the server has no chat model; fetch one with `penstock pull`")
    chosen: str = min(models, key=lambda entry: entry["state"] != "loaded")["id"]
    return chosen


def _converse(server: Server, model: str, start: list[Message]) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # its import gives input() a history and editing
    print(f"Chatting with {model}. {_HELP}")
    messages = list(start)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        match text.split():
            case []:
                continue
            case ["/exit" | "/quit" | "/bye"]:
                return
            case ["/clear"]:
                messages = list(start)
                continue
            case [command] if command.startswith("/"):
                print(_HELP)
                continue
        question = {"role": "user", "content": text}
        try:
            answer = _answer(server, model, [*messages, question])
        except ServerError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        print()
        messages += [question, {"role": "assistant", "content": answer}]


def _answer(server: Server, model: str, messages: list[Message], *, quiet: bool = False) -> str:
    """Ask, print the answer as it comes, and return it; Ctrl-C in a conversation ends it early."""
    body = {"model": model, "messages": messages, "stream": True}
    pieces: list[str] = []
    printer = _Printer(quiet)
    with closing(server.stream("/v1/chat/completions", body)) as events:  # type: ignore[type-var]
        try:
            for event in events:
                for choice in event.get("choices", ()):
                    printer.show(choice["delta"])
                    pieces.append(choice["delta"].get("content") or "")
        except KeyboardInterrupt:
            if not pieces:
                raise
    printer.end()
    return "".join(pieces)


class _Printer:
    """Prints what a model says, and dimly what it thinks if a person looks on."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._shows_thoughts = sys.stdout.isatty()
        self._dim = False

    def show(self, delta: dict[str, Any]) -> None:
        if self._quiet:
            return
        thought, text = delta.get("reasoning_content"), delta.get("content")
        if thought and self._shows_thoughts:
            self._write(thought, dim=True)
        if text:
            self._write(text, dim=False)

    def end(self) -> None:
        if self._dim:
            self._write("", dim=False)

    def _write(self, text: str, *, dim: bool) -> None:
        if dim != self._dim:
            sys.stdout.write(_DIM if dim else f"{_PLAIN}\n")
            self._dim = dim
        sys.stdout.write(text)
        sys.stdout.flush()
