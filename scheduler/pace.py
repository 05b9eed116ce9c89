"""How long a step will take, learnt from earlier ones, and so how much may go into it beside running streams.

A stream gets its next token when the step ends, whatever else is in it. So while streams run, a step takes only as many
tokens of prompts and of texts as are expected to fit into the target for the time between two tokens. What a token
costs depends on model, machine and the length of contexts, and changes all the time: it is followed, not configured.

Steps vary, most of all on a machine that does other things too. What is aimed at lies so far below the target that one
step in a hundred misses it, which is followed as well.

For each model, seconds = base + row * streams + token * (tokens of prompts or texts). The models of a step add up.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

MIN_TOKENS = 32
"""Prompt tokens that every step may take, so that slow streams starve no prompt."""

_FIRST_AIM, _MIN_AIM, _MAX_AIM = 0.8, 0.4, 0.9  # of the target
_MISS_COST, _HIT_GAIN = 0.02, 0.0002  # of it; they balance where one step in a hundred misses
_ROW_SCALE = 32  # streams; brings base and row to one size for the gradient
_ROW_RATE = 0.5
# Dearer is believed sooner than cheaper: a target missed is worse than a few steps too small.
_DEARER_RATE, _CHEAPER_RATE = 0.5, 0.25
_FORGETTING_RATE = 0.01
_MAX_JUMP = 4.0  # a step that took longer than that many times what was expected was held up by something else
_MIN_SHARE = 0.1  # of a step's time is ascribed to its prompts, however slow its streams were thought to be


@dataclass(slots=True)
class ModelPace:
    """What is known of one model's speed; all in seconds."""

    base: float | None = None
    """None: no step with nothing but streams was seen."""
    row: float = 0.0
    token: float | None = None
    """None: no step with prompts or texts was seen."""
    draft: float | None = None
    """Of a guess beside a stream's token. None: no step with guesses was seen."""

    def of_rows(self, num_rows: int) -> float:
        """Seconds that a step takes for so many streams."""
        return 0.0 if self.base is None or num_rows == 0 else self.base + self.row * num_rows

    @property
    def of_draft(self) -> float:
        """Seconds that a guess adds to a step."""
        return self.row if self.draft is None else self.draft

    def observe(self, num_rows: int, num_tokens: int, seconds: float, num_drafts: int = 0) -> None:
        """Learn from one step of the model.

        `num_rows` streams, `num_drafts` guesses of theirs and `num_tokens` of prompts or texts took `seconds`.
        """
        expected = self.of_rows(num_rows)
        if num_drafts > 0:
            if num_tokens == 0 and self.base is not None:
                cost = max(0.0, seconds - expected) / num_drafts
                self.draft = cost if self.draft is None else self.draft + _CHEAPER_RATE * (cost - self.draft)
            return
        if self.draft is not None:  # forgotten slowly, or guesses that once seemed too dear were never tried again
            self.draft += _FORGETTING_RATE * (self.row - self.draft)
        if num_tokens == 0 or seconds < expected:
            self._observe_rows(num_rows, seconds)
        if num_tokens > 0:
            cost = max(seconds - expected, _MIN_SHARE * seconds) / num_tokens
            if self.token is None:
                self.token = cost
            else:
                rate = _DEARER_RATE if cost > self.token else _CHEAPER_RATE
                self.token += rate * (min(cost, _MAX_JUMP * self.token) - self.token)

    def _observe_rows(self, num_rows: int, seconds: float) -> None:
        if self.base is None:
            self.base = seconds
            return
        expected = self.base + self.row * num_rows
        error = min(seconds, _MAX_JUMP * expected) - expected
        # A step along the gradient that corrects a share of the error at this number of rows, whatever it is.
        scaled = num_rows / _ROW_SCALE
        correction = _ROW_RATE * error / (1 + scaled * scaled)
        self.base = max(0.0, self.base + correction)
        self.row = max(0.0, self.row + correction * scaled / _ROW_SCALE)


class StepPace:
    """The speed of every model, and the target for a step with streams in it."""

    def __init__(self, target: float) -> None:
        """`target` is the time between two tokens of a stream, in seconds; 0: there is none."""
        self.target = target
        self._aim = _FIRST_AIM
        self._models: defaultdict[str, ModelPace] = defaultdict(ModelPace)

    def seconds_beside(self, num_rows: Mapping[str, int]) -> float:
        """Seconds to spend on prompts and texts beside so many streams of each model; infinite if none runs."""
        if self.target == 0 or not any(num_rows.values()):
            return math.inf
        taken = sum(self._models[model].of_rows(count) for model, count in num_rows.items())
        return max(0.0, self._aim * self.target - taken)

    def tokens_per_draft(self, model: str, num_rows: int) -> float:
        """Tokens that so many streams would get in the time that one guess takes; infinite while nothing is known.

        A guess pays if it is right more often than that.
        """
        pace = self._models[model]
        seconds = pace.of_rows(num_rows)
        return pace.of_draft * num_rows / seconds if seconds > 0 else math.inf

    def seconds_per_token(self, model: str) -> float:
        """Of a prompt or a text; infinite while nothing is known, so that a model begins with the smallest steps."""
        token = self._models[model].token
        return math.inf if token is None else token

    def observe(self, model: str, num_rows: int, num_tokens: int, seconds: float, num_drafts: int = 0) -> None:
        """Learn what one model took in one step, see `ModelPace`."""
        if seconds > 0:
            self._models[model].observe(num_rows, num_tokens, seconds, num_drafts)

    def observe_step(self, num_tokens_beside: int, seconds: float) -> None:
        """Learn from a whole step whether streams got their tokens in time beside so many tokens of prompts and texts.

        A step that had no more than it must have says nothing: aiming lower would not have made it shorter.
        """
        if num_tokens_beside > MIN_TOKENS:
            changed = self._aim - _MISS_COST if seconds > self.target else self._aim + _HIT_GAIN
            self._aim = min(_MAX_AIM, max(_MIN_AIM, changed))

    def forget(self, model: str) -> None:
        """The model is unloaded; another may come under its name."""
        self._models.pop(model, None)
