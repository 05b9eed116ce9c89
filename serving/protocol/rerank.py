"""The bodies of POST /v1/rerank, as Cohere, Jina and vLLM have it, and of vLLM's POST /v1/score."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, model_validator

from .body import RequestBody, invalid
from .embedding import TruncatePromptTokens
from .other_fields import RERANK

MAX_DOCUMENTS = 2048
"""Documents, or pairs, of one request."""


def _check_documents(value: Any) -> list[str]:
    """Texts, or objects with one in `text`, as texts.

    Raises:
        PydanticCustomError: it is anything else.
    """
    if not isinstance(value, list):
        raise invalid("invalid_type", "expected an array of strings, or of objects with a string in 'text'.")
    if not value:
        raise invalid("empty_array", "the array is empty. Send at least one document.")
    if len(value) > MAX_DOCUMENTS:
        raise invalid(
            "array_above_max_length",
            f"{len(value)} documents are more than {MAX_DOCUMENTS}. Send them in several requests.",
        )
    documents = []
    for number, item in enumerate(value):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise invalid("invalid_type", "expected a string, or an object with a string in 'text'.", str(number))
        if isinstance(item, dict) and (others := sorted(item.keys() - {"text"})):
            raise invalid(
                "unknown_parameter", "only the 'text' of a document is read. Leave it out.", f"{number}.{others[0]}"
            )
        documents.append(text)
    return documents


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Text = Annotated[str, StringConstraints(min_length=1)]


class DocumentText(RequestBody):
    """A document that is an object; only its text is read."""

    text: _Text


_DocumentsForm = Annotated[list[_Text | DocumentText], Field(min_length=1, max_length=MAX_DOCUMENTS)]
_TextsForm = Annotated[list[_Text], Field(min_length=1, max_length=MAX_DOCUMENTS)]
Documents = Annotated[list[str], PlainValidator(_check_documents, json_schema_input_type=_DocumentsForm)]
Texts = Annotated[_TextsForm, BeforeValidator(_as_list, json_schema_input_type=_Text | _TextsForm)]
"""A single text becomes a list of one."""


class ScoringBody(RequestBody):
    """What both endpoints have in common."""

    model: str
    truncate_prompt_tokens: TruncatePromptTokens = None
    """Cut documents, or second texts, so that a pair has at most so many tokens; -1: as many as the model takes. None:
    refuse longer pairs."""
    ttl: int | None = Field(default=None, ge=0, lt=2**31)
    """Seconds that the model stays after its last use, if this request loads it."""
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)


class RerankBody(ScoringBody):
    """POST /v1/rerank."""

    other_fields = RERANK

    query: str = Field(min_length=1)
    documents: Documents
    top_n: int | None = Field(default=None, ge=1)
    """Return so many of the best documents; None: all of them."""
    return_documents: bool = True
    max_tokens_per_doc: int | None = Field(default=None, ge=1)
    """Cut documents to so many tokens before anything else."""


class ScoreBody(ScoringBody):
    """POST /v1/score."""

    other_fields = RERANK

    text_1: Texts
    text_2: Texts

    @model_validator(mode="after")
    def _texts_pair_up(self) -> "ScoreBody":
        if len(self.text_1) not in (1, len(self.text_2)):
            raise invalid(
                "invalid_value",
                f"{len(self.text_1)} texts do not pair up with {len(self.text_2)}. "
                "Send as many as in text_2, or a single one.",
                "text_1",
            )
        return self
