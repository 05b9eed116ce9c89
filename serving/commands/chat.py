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
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="X", help="how daring the answers are, 0 to 2 (default: 0.7)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (default: what the context holds)")
    return run_command(parser, arguments, _chat)


def _chat(options: argparse.Namespace, settings: Settings) -> None:
    server = server_of(options, settings)
    wishes = {"temperature": options.temperature}
    if options.max_tokens is not None:
        wishes["max_tokens"] = options.max_tokens
    talk = _Talk(server, options.model or _choose(server), wishes, quiet=options.json)
    start: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    if options.prompt is not None:
        text = sys.stdin.read() if options.prompt == "-" else options.prompt
        answer = talk.ask([*start, {"role": "user", "content": text}])
        print(json.dumps({"model": talk.model, "content": answer}) if options.json else "")
        return
    if options.json:
        raise CommandError("--json needs --prompt")
    _converse(talk, start)


def _choose(server: Server) -> str:
    models = [entry for entry in server.models() if entry["type"] == "llm"]
    if not models:
        raise CommandError("the server has no chat model; fetch one with `penstock pull`")
    chosen: str = min(models, key=lambda entry: entry["state"] != "loaded")["id"]
    return chosen


def _converse(talk: "_Talk", start: list[Message]) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # its import gives input() a history and editing
    print(f"Chatting with {talk.model}. {_HELP}")
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
            answer = talk.ask([*messages, question])
        except ServerError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        print()
        messages += [question, {"role": "assistant", "content": answer}]


class _Talk:
    """Asks one model of one server.

    Args:
        server: the server.
        model: its model's name.
        wishes: further fields of each request.
        quiet: do not print the answers.
    """

    def __init__(self, server: Server, model: str, wishes: dict[str, Any], *, quiet: bool) -> None:
        self.model = model
        self._server = server
        self._wishes = wishes
        self._quiet = quiet

    def ask(self, messages: list[Message]) -> str:
        """Ask, print the answer as it comes, and return it; Ctrl-C ends an answer that has begun."""
        body = {"model": self.model, "messages": messages, "stream": True, **self._wishes}
        pieces: list[str] = []
        printer = _Printer(self._quiet)
        with closing(self._server.stream("/v1/chat/completions", body)) as events:
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
