"""Follows one JSON value as it grows and says where it ends, in time proportional to what is new."""

import re

_ATOM = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_ATOM_CHARACTERS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")
_STRING_END = re.compile(r'["\\]')
_SPACE = " \t\n\r"


class JsonFaultError(ValueError):
    """The text is no JSON.

    Args:
        message: why.
        at: index of the first character at fault.
    """

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class JsonScanner:
    """One value. Line breaks within strings pass, since models write them; all else must be JSON.

    Attributes:
        complete: the value has ended.
    """

    def __init__(self) -> None:
        self.complete = False
        self._closers: list[str] = []  # of the open objects and arrays
        self._wants = "value"  # or first_value, key, first_key, colon, more; or within: string, escape, atom
        self._string_is_key = False
        self._atom = ""

    def feed(self, text: str, at: int = 0) -> int:
        """Follow the text from index `at` on.

        Returns:
            The index after what belongs to the value.

        Raises:
            JsonFaultError: it is no JSON.
        """
        while at < len(text) and not self.complete:
            if self._wants == "string":
                end = _STRING_END.search(text, at)
                if end is None:
                    return len(text)
                at = end.end()
                if end.group() == "\\":
                    self._wants = "escape"
                else:
                    self._end_value(is_key=self._string_is_key)
            elif self._wants == "escape":
                self._wants = "string"
                at += 1
            elif self._wants == "atom":
                if text[at] in _ATOM_CHARACTERS:
                    self._atom += text[at]
                    at += 1
                elif _ATOM.fullmatch(self._atom):
                    self._end_value()
                else:
                    raise JsonFaultError(f"{self._atom!r} is no value", at)
            else:
                if text[at] not in _SPACE and not self._take(text[at]):
                    raise JsonFaultError(f"{text[at]!r} has no place here", at)
                at += 1
        return at

    def _take(self, character: str) -> bool:
        """Take a character outside of strings and numbers; False: it has no place here."""
        if self._wants == "more":
            if character == ",":
                self._wants = "key" if self._closers[-1] == "}" else "value"
                return True
        elif self._wants == "colon":
            if character == ":":
                self._wants = "value"
                return True
        elif self._wants in ("key", "first_key"):
            if character == '"':
                self._wants, self._string_is_key = "string", True
                return True
        elif self._begin_value(character):
            return True
        if self._wants in ("more", "first_key", "first_value") and self._closers and character == self._closers[-1]:
            self._closers.pop()
            self._end_value()
            return True
        return False

    def _begin_value(self, character: str) -> bool:
        if character == '"':
            self._wants, self._string_is_key = "string", False
        elif character == "{":
            self._closers.append("}")
            self._wants = "first_key"
        elif character == "[":
            self._closers.append("]")
            self._wants = "first_value"
        elif character in _ATOM_CHARACTERS:
            self._wants, self._atom = "atom", character
        else:
            return False
        return True

    def _end_value(self, *, is_key: bool = False) -> None:
        if is_key:
            self._wants = "colon"
        elif self._closers:
            self._wants = "more"
        else:
            self.complete = True
