"""The control tokens of a tokenizer: tokens that stand for something other than their letters."""

from collections.abc import Iterable, Mapping

from ..output_format import lark_string


class ControlTokens:
    """Which markers of a format are single tokens of a model.

    Args:
        ids: token ids by text, of all tokens that were added to the vocabulary and that the grammar compiler holds
            apart from text.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids

    def id_of(self, marker: str) -> int | None:
        """The token of this text; None: it is written with ordinary tokens."""
        return self._ids.get(marker)

    def among(self, markers: Iterable[str]) -> list[str]:
        """The markers that are single tokens."""
        return [marker for marker in markers if marker in self._ids]

    def lark(self, marker: str) -> str:
        """An expression of Lark that matches the marker as the model writes it."""
        token_id = self._ids.get(marker)
        return lark_string(marker) if token_id is None else f"<[{token_id}]>"
