"""A completion's prompts: each becomes token ids, framed for fill-in-the-middle if there is a suffix, and its echo."""

from dataclasses import dataclass

from penstock.scheduler.messages import ModelReady

from ..errors import ApiError
from ..protocol.completion import CompletionBody
from ..text.fim import FillInTheMiddle, find_fill_in_the_middle
from ..text.served_model import ServedModel
from ..text.threads import TextThreads
from ..text.tokenizer import TextTokenizer
from .sampling import check_token_ids, token_limit, token_room
from .text_length import check_text_length


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request."""

    token_ids: list[int]
    echo: str
    """What a choice's text begins with: the prompt's text, if the client wants that, else nothing."""
    param: str
    """The request field that errors name."""
    stop_token_ids: tuple[int, ...] = ()
    """End its choices, besides what ends all of the request's."""


async def read_prompts(
    body: CompletionBody, served: ServedModel, ready: ModelReady, threads: TextThreads
) -> list[Prompt]:
    """The prompts of a request in their order.

    Raises:
        ApiError: a token id is outside the vocabulary, a prompt has no tokens, or the model cannot fill in the middle.
    """
    params = ["prompt"] if len(body.prompt) == 1 else [f"prompt.{number}" for number in range(len(body.prompt))]
    for item, param in zip(body.prompt, params, strict=True):
        if isinstance(item, list):
            check_token_ids(item, ready, param)
    tokenizer = served.tokenizer
    limit = token_limit(ready)
    middle = _fill_in_the_middle(served) if body.suffix else None

    def encode(text: str, param: str, *, special: bool) -> list[int]:
        check_text_length(text, served, limit, param)
        return tokenizer.encode(text, limit, add_special_tokens=special)

    def read() -> list[Prompt]:
        suffix = encode(body.suffix or "", "suffix", special=False) if middle else []
        prompts = []
        for item, param in zip(body.prompt, params, strict=True):
            special = body.add_special_tokens and middle is None  # the frame has them already
            token_ids = item if isinstance(item, list) else encode(item, param, special=special)
            if middle is not None:
                token_ids = middle.frame(token_ids, suffix)
            token_room(ready, len(token_ids), param)  # the next prompt need not be read
            echo = _text(item, tokenizer) if body.echo else ""
            prompts.append(Prompt(token_ids, echo, param, middle.stop_token_ids if middle else ()))
        return prompts

    characters = sum(len(item) for item in [*body.prompt, body.suffix or ""] if isinstance(item, str))
    prompts = await threads.run(characters, read)
    for prompt in prompts:
        if not prompt.token_ids:
            raise ApiError(
                f"Invalid '{prompt.param}': the prompt has no tokens. Send some text or a begin token.",
                code="empty_string",
                param=prompt.param,
            )
    return prompts


def _text(item: str | list[int], tokenizer: TextTokenizer) -> str:
    return item if isinstance(item, str) else tokenizer.decode(item)


def _fill_in_the_middle(served: ServedModel) -> FillInTheMiddle:
    middle = find_fill_in_the_middle(served.tokenizer)
    if middle is None:
        raise ApiError(
            f"Unsupported 'suffix': the tokenizer of '{served.name}' has no tokens that mark a gap in a text "
            "(fill-in-the-middle). Leave it out, or use a model that was trained for it.",
            code="unsupported_parameter",
            param="suffix",
        )
    return middle
