"""Refuses texts that no model could take before they are tokenised, which costs seconds for each ten megabytes."""

from ..errors import ApiError
from ..text.served_model import ServedModel


def check_text_length(text: str, served: ServedModel, limit: int, param: str) -> None:
    """Refuse a text of far more characters than `limit` tokens have.

    Raises:
        ApiError: context_length_exceeded, with both numbers.
    """
    most = served.tokenizer.max_characters(limit)
    if len(text) > most:
        raise ApiError(
            f"The input has {len(text)} characters. The {limit} tokens that '{served.name}' takes are at most {most}. "
            "Shorten the input.",
            code="context_length_exceeded",
            param=param,
            tokens=(limit + 1, limit),
        )
