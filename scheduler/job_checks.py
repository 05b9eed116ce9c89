"""Refuses jobs that can never be computed, or whose contents would break the step that they are in."""

from .errors import ContextLengthError, RequestError
from .messages import Embed
from .policy import EmbeddingJob
from .request import Request


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


def check_request(request: Request, limit: int, max_model_len: int) -> None:
    """Refuse a request without a prompt, without anything left to generate, or of more than `limit` tokens.

    Raises:
        ContextLengthError: prompt and output can never fit.
        RequestError: all else.
    """
    if not request.prompt_token_ids:
        raise RequestError("the prompt has no tokens; send at least one")
    if request.num_output_tokens >= request.sampling.max_tokens:
        raise RequestError(
            f"the job already has {request.num_output_tokens} of {request.sampling.max_tokens} output tokens"
        )
    if request.max_num_tokens > limit:
        reason = "the model's context" if limit == max_model_len else "the whole KV cache"
        raise ContextLengthError(
            f"{len(request.prompt_token_ids)} prompt tokens and {request.sampling.max_tokens} output tokens need "
            f"{request.max_num_tokens} tokens, but {reason} holds {limit}; shorten the prompt or lower max_tokens"
        )


def check_texts(job: EmbeddingJob, max_model_len: int) -> None:
    """Refuse a job without texts, or with one that is empty or longer than the model takes.

    Raises:
        ContextLengthError: a text is too long.
        RequestError: all else.
    """
    if not job.remaining or not all(item.token_ids for item in job.remaining):
        raise RequestError("an embedding job needs texts, each of at least one token", param="input")
    longest = max(len(item.token_ids) for item in job.remaining)
    if longest > max_model_len:
        raise ContextLengthError(
            f"an input has {longest} tokens, but {job.model} takes {max_model_len}; split the input",
            param="input",
        )
