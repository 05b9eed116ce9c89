"""One choice of an answer in plain text: the engine's tokens become text, stop strings end it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.scheduler.messages import RequestOutput, Submit, TokenLogprobs

from ..text.detokenizer import Detokenizer
from ..text.token_table import TokenTable
from .watched_text import TokenEntry, WatchedText


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in one choice."""

    index: int
    text: str
    entries: list[TokenEntry] = field(default_factory=list)
    """The tokens of `text`, if log probabilities were asked for."""
    finish_reason: str | None = None


class Choice:
    """The state of one choice between the engine and the client.

    Args:
        index: its place in the answer.
        job: its job for the engine.
        table: the model's tokens.
        stop: stop strings.
        keeps_end_token: the end token has log probabilities among the text's tokens.
        only_scores: it is there for its prompt's log probabilities, and the token that the engine must sample is
            dropped.

    Attributes:
        num_tokens: tokens generated so far, an end token included.
        num_reasoning_tokens: none, since plain text is not searched for thinking.
        num_cached_tokens: prompt tokens that came from the prefix cache.
        finish_reason: None until it ends.
        prompt_logprobs: of all prompt tokens but the first, once they have come, if they were asked for.
    """

    def __init__(
        self,
        index: int,
        job: Submit,
        table: TokenTable,
        stop: Sequence[str],
        *,
        keeps_end_token: bool = False,
        only_scores: bool = False,
    ) -> None:
        self.index = index
        self.job = job
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: str | None = None
        self.prompt_logprobs: list[TokenLogprobs] | None = None
        self._keeps_end_token = keeps_end_token
        self._only_scores = only_scores
        self._detokenizer = Detokenizer(table, continues=True)
        self._watched = WatchedText(stop)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._watched.stop_string

    def feed(self, output: RequestOutput) -> Delta | None:
        """What the engine's output adds; None if it adds nothing that can be sent yet."""
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if self._only_scores:
            self.finish_reason = "length" if output.finish_reason is not None else None
            return Delta(self.index, "", finish_reason=self.finish_reason) if self.finish_reason else None
        text = ""
        num_text_tokens = len(output.token_ids) - (output.stop_token_id is not None)
        for position, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            if position >= num_text_tokens:  # the end token
                if self._keeps_end_token and output.logprobs is not None:
                    self._watched.add_token(token_id, output.logprobs[position])
                break
            if output.logprobs is not None:
                self._watched.add_token(token_id, output.logprobs[position])
            text += self._watch(self._detokenizer.feed(token_id))
            if self.finish_reason is not None:
                break
        if self.finish_reason is None and output.finish_reason is not None:
            text += self._watch(self._detokenizer.flush())
            if self.finish_reason is None:
                self.finish_reason = output.finish_reason
                text += self._watched.flush()
        entries = self._watched.release_entries()
        if not text and not entries and self.finish_reason is None:
            return None
        return Delta(self.index, text, entries, self.finish_reason)

    def _watch(self, piece: str) -> str:
        """The part of the new text that can be sent; ends the choice at a stop string."""
        safe = self._watched.feed(piece, watch=self.num_tokens > self.job.sampling.min_tokens)
        if self.stop_string is not None:
            self.finish_reason = "stop"
        return safe
