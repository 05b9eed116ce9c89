"""Guesses the next tokens of a request from its own earlier ones: after an n-gram that came before, what followed it.

It costs no model, and text is full of repetitions where it is edited, extracted or quoted. The guesses are right or
wrong by what the model then says, so they are also scored when nobody computed them: acceptance is always known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .config import EngineConfig
from .request import Request

_MAX_ENTRIES = 32768  # of one index; the one before it is kept too, so a request remembers that many tokens or more
_MARGIN = 1.25  # of what guesses must gain over what they cost, since both are estimates
_ACCEPTANCE_RATE = 0.2  # weight of the newest guess


class NgramIndex:
    """Where in a sequence each n-gram was last followed by something; a constant time a token, and bounded memory."""

    def __init__(self, size: int, max_entries: int = _MAX_ENTRIES) -> None:
        """An index of the n-grams of `size` tokens."""
        self.size = size
        self._max_entries = max_entries
        self._newer: dict[tuple[int, ...], int] = {}
        self._older: dict[tuple[int, ...], int] = {}

    def add(self, token_ids: Sequence[int], end: int) -> None:
        """The n-gram before `end` is followed by token `end`."""
        if end >= self.size:
            if len(self._newer) >= self._max_entries:
                self._newer, self._older = {}, self._newer
            self._newer[tuple(token_ids[end - self.size : end])] = end

    def find(self, token_ids: Sequence[int]) -> int | None:
        """Where the newest earlier occurrence of the last n-gram ends; None: there is none."""
        if len(token_ids) < self.size:
            return None
        ngram = tuple(token_ids[len(token_ids) - self.size :])
        return self._newer.get(ngram, self._older.get(ngram))


class Drafter:
    """Guesses for one request.

    Attributes:
        acceptance: share of guessed tokens that came true, the newest ones counting most.
        num_drafted: guessed tokens that were computed.
        num_accepted: those of them that came true and belong to the output.
    """

    def __init__(self, num_tokens: int, min_ngram: int, max_ngram: int) -> None:
        """Guesses of `num_tokens` tokens from n-grams of `max_ngram` down to `min_ngram` tokens, longest first."""
        self.acceptance = 0.5  # in two minds at first
        self.num_drafted = 0
        self.num_accepted = 0
        self._num_tokens = num_tokens
        self._indexes = [NgramIndex(size) for size in range(max_ngram, min_ngram - 1, -1)]
        self._num_seen = 0
        self._guess: list[int] = []  # the newest one that is not yet known to be right or wrong
        self._guess_start = 0  # index of its first token in the sequence

    def propose(self, token_ids: Sequence[int]) -> list[int]:
        """What may follow `token_ids`, which only ever grow; empty if nothing is known.

        Only the tokens that are new since the last call are looked at.
        """
        first = self._num_seen or max(1, len(token_ids) - _MAX_ENTRIES)
        for end in range(first, len(token_ids)):
            for index in self._indexes:
                index.add(token_ids, end)
        self._num_seen = len(token_ids)
        self._score(token_ids)
        guess = self._look_up(token_ids)
        if not self._guess:
            self._guess, self._guess_start = guess, len(token_ids)
        return guess

    def _look_up(self, token_ids: Sequence[int]) -> list[int]:
        for index in self._indexes:
            place = index.find(token_ids)
            if place is not None:
                period = len(token_ids) - place  # what goes on beyond the end goes round
                return [token_ids[place + offset % period] for offset in range(self._num_tokens)]
        return []

    def _score(self, token_ids: Sequence[int]) -> None:
        """Learn from the newest guess once it is known to be right or wrong."""
        if not self._guess:
            return
        came = token_ids[self._guess_start : self._guess_start + len(self._guess)]
        right = num_equal(self._guess, came)
        if right == len(came) < len(self._guess):
            return  # right so far
        self.acceptance += _ACCEPTANCE_RATE * (right / len(self._guess) - self.acceptance)
        self._guess = []


@dataclass(frozen=True, slots=True)
class Speculation:
    """Decides which requests are guessed for, and when guesses are worth computing."""

    num_tokens: int
    min_ngram: int
    max_ngram: int

    @classmethod
    def of(cls, config: EngineConfig) -> "Speculation | None":
        """What the configuration asks for; None: nothing."""
        if config.speculation == "off":
            return None
        return cls(config.num_draft_tokens, config.min_ngram, config.max_ngram)

    @staticmethod
    def is_open_to(request: Request) -> bool:
        """Whether the request's tokens could be sampled several at a time.

        A grammar, penalties and `min_tokens` make a token's distribution depend on the tokens before it beyond what
        the model computes.
        """
        params = request.sampling
        is_young = request.num_output_tokens < params.min_tokens
        return not (request.matcher or params.has_penalties or is_young or request.needs_prompt_logprobs)

    def guess(self, request: Request, room: int, price: float) -> list[int]:
        """What to compute together with the request's newest token.

        Args:
            request: one that is open to it.
            room: guesses that fit into the step.
            price: tokens that all streams could have in the time that a guess takes, see `StepPace`: it pays if it is
                right clearly more often. At many streams it never is.
        """
        if request.drafter is None:
            request.drafter = Drafter(self.num_tokens, self.min_ngram, self.max_ngram)
        guess = request.drafter.propose(request.token_ids)
        if request.drafter.acceptance <= _MARGIN * price:
            return []
        # One token is sampled after the last guess.
        return guess[: max(0, min(room, request.max_num_tokens - request.num_tokens - 1))]


def num_equal(guess: Sequence[int], token_ids: Sequence[int]) -> int:
    """How many tokens of a guess come true before the first that does not."""
    number = 0
    for guessed, token_id in zip(guess, token_ids, strict=False):
        if guessed != token_id:
            break
        number += 1
    return number
