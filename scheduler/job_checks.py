"""Refuses jobs whose contents would break the step that they are in."""

from .errors import RequestError
from .messages import Embed


def check_token_ids(sequences: list[list[int]], vocab_size: int) -> None:
    """Refuse ids without an embedding: on a GPU one of them would end the process, on a CPU everybody's step.

    Raises:
        RequestError: naming the first of them.
    """
    for token_ids in sequences:
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
            raise RequestError(f"token id {bad} is not in the vocabulary, whose ids are 0 to {vocab_size - 1}")


def check_second_starts(job: Embed) -> None:
    """Refuse a job whose pairs are not all there, or would end before they start.

    Raises:
        RequestError: with the numbers.
    """
    if not job.second_starts:
        return
    if len(job.second_starts) != len(job.inputs):
        raise RequestError(f"there are {len(job.inputs)} inputs, but {len(job.second_starts)} starts of second texts")
    for token_ids, start in zip(job.inputs, job.second_starts, strict=True):
        if not 0 <= start <= len(token_ids):
            raise RequestError(f"a second text starts at {start} in an input of {len(token_ids)} tokens")
