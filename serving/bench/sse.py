"""An incremental parser of server-sent events that works on bytes and yields the data of each event."""


class SseParser:
    """Takes a stream in any pieces; follows WHATWG HTML section 9.2.6 as far as `data` fields go.

    Lines may end in LF, CRLF or CR. Comments, `event`, `id` and `retry` fields are passed over: OpenAI's events
    repeat their type inside the data. An event that the stream leaves unfinished is dropped, as the standard says.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that `piece` completes."""
        if self._after_cr or b"\r" in piece:
            piece = self._with_plain_line_ends(piece)
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        return [data for event in events if (data := _data(event)) is not None]

    def _with_plain_line_ends(self, piece: bytes) -> bytes:
        """LF for CRLF and CR; JSON escapes both in strings, so a CR in the stream can only end a line."""
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]  # second half of a CRLF whose CR was taken as the line's end
            self._after_cr = False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes | None:
    """The event's data lines joined by LF, None if it has none."""
    if event.startswith(b"data: ") and b"\n" not in event:  # nearly every event there is
        return event[6:]
    lines = [
        value.removeprefix(b" ")
        for name, _, value in (line.partition(b":") for line in event.split(b"\n"))
        if name == b"data"
    ]
    return b"\n".join(lines) if lines else None
