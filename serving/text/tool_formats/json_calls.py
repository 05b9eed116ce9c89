"""Reads calls written as JSON objects of a name and arguments, alone or in an array, and passes the arguments on."""

import json
from collections.abc import Collection

from ..marker_search import MarkerSearch
from ..pieces import CallBegin, CallFinish, CallPart, Piece
from .block_parser import NoCallError
from .json_scanner import JsonFaultError, JsonScanner

_NAME_KEYS = frozenset({"name", "tool_name"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args"})
_OTHER_KEYS = frozenset({"type", "id", "call_id", "tool_call_id", "index", "thought", "thoughts"})


class JsonArguments:
    """The arguments of a call: a JSON object, passed on as it comes.

    Some models write the object as JSON text in a string, which is decoded when it is complete.

    Attributes:
        is_complete: the arguments have ended.
        is_broken: they are no JSON any more.
    """

    def __init__(self) -> None:
        self.is_complete = self.is_broken = False
        self._scanner = JsonScanner()
        self._is_string = False
        self._string = ""
        self._has_begun = False

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """Take more text, at first one that `can_begin`.

        Returns:
            What comes of it, and what is left after the arguments or from where they are broken.
        """
        if not self._has_begun:
            self._has_begun = True
            self._is_string = text.startswith('"')
        try:
            end = self._scanner.feed(text)
        except JsonFaultError as fault:
            self.is_broken, end = True, fault.at
        self.is_complete = self._scanner.complete
        if not self._is_string:
            return [CallPart(text[:end])] if end else [], text[end:]
        self._string += text[:end]
        return [CallPart(_decoded(self._string))] if self.is_complete else [], text[end:]

    @staticmethod
    def can_begin(text: str) -> bool:
        """Whether arguments begin with this text."""
        return text.startswith(("{", '"'))


def _decoded(string: str) -> str:
    """The text in a JSON string, if that is an object; else the string, for the client to judge."""
    try:
        text = json.loads(string, strict=False)
        return str(text) if isinstance(json.loads(text, strict=False), dict) else string
    except ValueError:
        return string


class JsonCall:
    """One call as an object such as `{"name": "f", "arguments": {…}}`; other keys are skipped.

    Args:
        names: of the tools that may be called.

    Attributes:
        is_over: the object has ended.
        has_begun: its name is known, and what comes is passed on.
        is_broken: it has begun, but is no JSON any more.
        drops_rest: what is broken comes after the arguments, and belongs to nothing.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.is_over = self.has_begun = self.is_broken = self.drops_rest = False
        self._names = names
        self._wants = "open"  # or first_key, key, colon, name, arguments, other, comma
        self._scanner = JsonScanner()
        self._text = ""  # of the key or the name that is read
        self._key = ""
        self._arguments = JsonArguments()
        self._early: list[Piece] = []  # arguments that stand before the name
        self._any_arguments = False

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """Take more text; return what comes of it and what is left after the object, or from where it is broken.

        Raises:
            NoCallError: it is no call of a tool that may be called.
        """
        pieces: list[Piece] = []
        try:
            while text and not self.is_over and not self.is_broken:
                text = self._step(text, pieces)
        except ValueError as error:
            if not self.has_begun:
                raise NoCallError(str(error)) from None
            self.is_broken, self.drops_rest = True, self._arguments.is_complete or not self._any_arguments
        return pieces, text

    def finish(self, *, complete: bool) -> list[Piece]:
        """The text has ended within the object: whole arguments make a call, whatever is missing after them.

        Raises:
            NoCallError: it has not begun.
        """
        if not self.has_begun:
            raise NoCallError("the call is cut off")
        if not complete and not self._arguments.is_complete:
            return []
        return [CallFinish()] if self._any_arguments else [CallPart("{}"), CallFinish()]

    def _step(self, text: str, pieces: list[Piece]) -> str:
        """Read one thing; return what is left."""
        if self._wants in ("name", "other", "key"):
            end = self._scanner.feed(text)
            if self._wants != "other":
                self._text += text[:end]
            if self._scanner.complete:
                self._end_scan(pieces)
            return text[end:]
        if self._wants == "arguments":
            return self._feed_arguments(text, pieces)
        text = text.lstrip()
        if text and self._structure(text[0], pieces):
            return text[1:]
        return text

    def _feed_arguments(self, text: str, pieces: list[Piece]) -> str:
        if not self._any_arguments:
            text = text.lstrip()
            if text and not self._arguments.can_begin(text):
                self._wants = "other"  # null, for no arguments
            self._any_arguments = self._wants == "arguments" and bool(text)
            if not self._any_arguments:
                return text
        new, rest = self._arguments.feed(text)
        (pieces if self.has_begun else self._early).extend(new)
        if self._arguments.is_broken:
            if not self.has_begun:
                raise NoCallError("the arguments are no JSON")
            self.is_broken = True
        elif self._arguments.is_complete:
            self._wants = "comma"
        return rest

    def _structure(self, character: str, pieces: list[Piece]) -> bool:
        """Take one character of the object's frame; False: it begins what comes next."""
        self._text, self._scanner = "", JsonScanner()
        match self._wants, character:
            case "open", "{":
                self._wants = "first_key"
            case (("first_key" | "next_key"), '"'):
                self._wants = "key"
                return False
            case "colon", ":":
                self._wants = self._kind_of_value()
            case "comma", ",":
                self._wants = "next_key"
            case "comma", "}":
                self._close(pieces)
            case _:
                raise NoCallError(f"{character!r} has no place here")
        return True

    def _kind_of_value(self) -> str:
        if self._key in _NAME_KEYS and not self.has_begun:
            return "name"
        if self._key in _ARGUMENT_KEYS and not self._any_arguments:
            return "arguments"
        return "other"

    def _end_scan(self, pieces: list[Piece]) -> None:
        if self._wants == "key":
            self._key = json.loads(self._text, strict=False)
            if not self.has_begun and self._key not in _NAME_KEYS | _ARGUMENT_KEYS | _OTHER_KEYS:
                raise NoCallError(f"a call has no {self._key!r}")
            self._wants = "colon"
            return
        if self._wants == "name":
            name = json.loads(self._text, strict=False)
            if not isinstance(name, str) or name not in self._names:
                raise NoCallError(f"there is no tool {name!r}")
            self.has_begun = True
            pieces += [CallBegin(name), *self._early]
        self._wants = "comma"

    def _close(self, pieces: list[Piece]) -> None:
        if not self.has_begun:
            raise NoCallError("the call has no name")
        if not self._any_arguments:
            pieces.append(CallPart("{}"))
        pieces.append(CallFinish())
        self.is_over = True


class JsonCallsReader:
    """A block of one call, or of an array of calls, up to an end marker.

    The end marker may be missing. A call that is broken goes on up to it, for the client to judge.

    Args:
        names: of the tools that may be called.
        end: the marker; "": none, the block ends with the call.
    """

    def __init__(self, names: Collection[str], end: str = "") -> None:
        self.is_over = False
        self._names = names
        self._end = end
        self._wants = "first"  # or call, next, end, or broken: the marker
        self._in_array = False
        self._call = JsonCall(names)
        self._broken = MarkerSearch([end]) if end else None
        self._held = ""  # what may become the end marker

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See BlockReader."""
        if self._wants == "broken":
            return self._feed_broken(text)
        if self._wants == "call":
            return self._feed_call(text)
        text = (self._held + text).lstrip()
        self._held = ""
        if not text:
            return [], ""
        if self._wants == "end":
            return [], self._after_end(text)
        if self._wants == "first":
            self._in_array = text[0] == "["
            self._wants = "call"
            return [], text[1:] if self._in_array else text
        if text[0] == ",":
            self._wants, self._call = "call", JsonCall(self._names)
        elif text[0] == "]":
            self._wants, self.is_over = "end", not self._end
        else:
            raise NoCallError("an array goes on with a comma")
        return [], text[1:]

    def finish(self, *, complete: bool) -> list[Piece]:
        """See BlockReader."""
        if self._wants == "broken":
            held = self._broken.flush() if self._broken is not None else ""
            pieces: list[Piece] = [CallPart(held)] if held and not self._call.drops_rest else []
            return [*pieces, CallFinish()] if complete or self._call.drops_rest else pieces
        if self._wants == "end":
            return []
        if self._wants == "call":
            return self._call.finish(complete=complete)
        raise NoCallError("the call is cut off")

    def _feed_call(self, text: str) -> tuple[list[Piece], str]:
        pieces, rest = self._call.feed(text)
        if self._call.is_broken:
            self._wants = "broken"
            broken, rest = self._feed_broken(rest)
            return pieces + broken, rest
        if self._call.is_over:
            self._wants = "next" if self._in_array else "end"
            self.is_over = not self._in_array and not self._end
        return pieces, rest

    def _feed_broken(self, text: str) -> tuple[list[Piece], str]:
        before, marker, after = self._broken.feed(text) if self._broken is not None else (text, None, "")
        pieces: list[Piece] = [CallPart(before)] if before and not self._call.drops_rest else []
        if marker is not None:
            self.is_over = True
            pieces.append(CallFinish())
        return pieces, after

    def _after_end(self, text: str) -> str:
        if text.startswith(self._end):
            self.is_over = True
            return text[len(self._end) :]
        if self._end.startswith(text):
            self._held = text
            return ""
        self.is_over = True
        return text
