"""Embeddings: texts and token ids to one job for the engine, its matrix to JSON numbers or base64."""

import base64
import time
import uuid
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from penstock.scheduler.messages import Embed, ModelReady

from ..errors import ApiError, context_length_exceeded
from ..principal import Principal
from ..protocol.embedding import EmbeddingBody
from ..protocol.explain import preview
from ..text.served_model import ServedModel
from ..text.threads import TextThreads
from .sampling import check_token_ids
from .services import Services
from .text_length import check_text_length

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddingHandler:
    """POST /v1/embeddings, behind a validated body."""

    services: Services

    async def answer(self, body: EmbeddingBody, principal: Principal) -> bytes:
        """The JSON answer.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused or lost the job.
        """
        served, ready = await self.services.find(body.model, "embed", ttl=body.ttl)
        _check_dimensions(body.dimensions, served, ready)
        inputs = await _tokenise(body, served, ready, self.services.threads)
        output = await self.services.embed(
            Embed(
                request_id=f"embd-{uuid.uuid4().hex}",
                model=served.name,
                inputs=inputs,
                arrival_time=time.time(),
                principal=principal.id,
                weight=principal.weight,
                priority=body.priority,
            ),
            principal,
        )
        self.services.metrics.count_embedded(served.name, len(inputs))
        vectors = np.frombuffer(output.data, dtype="<f4").reshape(len(inputs), output.dim)
        if body.dimensions is not None:
            vectors = shorten(vectors, body.dimensions)
        return _encode(vectors, body.encoding_format, served.name, sum(map(len, inputs)))


def _check_dimensions(dimensions: int | None, served: ServedModel, ready: ModelReady) -> None:
    if dimensions is None or dimensions == ready.embedding_dim:
        return
    if dimensions > ready.embedding_dim:
        raise ApiError(
            f"Invalid 'dimensions': {dimensions} is above the maximum of {ready.embedding_dim}, the size of "
            f"the vectors of '{served.name}'. Send that or less.",
            code="integer_above_max_value",
            param="dimensions",
        )
    if (allowed := served.input_rules.dimensions) and dimensions not in allowed:
        raise ApiError(
            f"Invalid 'dimensions': the vectors of '{served.name}' cannot be cut to {dimensions}. "
            f"Send one of: {', '.join(map(str, allowed))}.",
            code="invalid_value",
            param="dimensions",
        )


_PROMPT_SYNONYMS = {
    "document": ("document", "passage"),
    "passage": ("passage", "document"),
    "retrieval.passage": ("retrieval.passage", "passage", "document"),
    "retrieval.query": ("retrieval.query", "query"),
    "search_document": ("search_document", "document", "passage"),
    "search_query": ("search_query", "query"),
}
"""What other APIs call the two prompts of retrieval."""


def _prefix(body: EmbeddingBody, served: ServedModel) -> str:
    """What is put before every text."""
    rules = served.input_rules
    param = body.prompt_param
    if param is None:
        return rules.prefix
    name: str = getattr(body, param)
    for known in _PROMPT_SYNONYMS.get(name, (name,)):
        if known in rules.prompts:
            return rules.prompts[known]
    raise ApiError(
        f"Invalid '{param}': the model '{served.name}' has no prompt named {preview(name)}. "
        f"Its prompts: {', '.join(sorted(rules.prompts)) or 'none'}. Leave it out, or put the prompt into the input.",
        code="invalid_value",
        param=param,
    )


def shorten(vectors: Matrix, dimensions: int) -> Matrix:
    """The first `dimensions` components, of length 1 again: matryoshka embeddings.

    Args:
        vectors: [inputs, dim] float32.
        dimensions: at most dim.

    Returns:
        [inputs, dimensions] float32.
    """
    head = vectors[:, :dimensions]
    norms = np.linalg.norm(head, axis=1, keepdims=True)
    return np.ascontiguousarray(head / np.maximum(norms, np.finfo(np.float32).tiny))


def _encode(vectors: Matrix, encoding: str, model: str, num_tokens: int) -> bytes:
    def encode(vector: Matrix) -> object:
        return vector if encoding == "float" else base64.b64encode(vector.tobytes()).decode("ascii")

    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


async def _tokenise(
    body: EmbeddingBody, served: ServedModel, ready: ModelReady, threads: TextThreads
) -> list[list[int]]:
    """Token ids of every input, within the model's limit."""
    rules = served.input_rules
    limit = min(ready.max_model_len, rules.max_tokens or ready.max_model_len)
    cut = body.truncate_prompt_tokens
    max_length = None if cut is None else limit if cut == -1 else min(cut, limit)
    prefix = _prefix(body, served)
    texts: list[str] = []
    inputs: list[list[int]] = []
    for number, item in enumerate(body.input):
        param = _param(body, number)
        if isinstance(item, list):
            check_token_ids(item, ready, param)
            inputs.append(item[:max_length])
            continue
        if not item:
            raise ApiError(
                f"Invalid '{param}': the text is empty. Send at least one character.", code="empty_string", param=param
            )
        if max_length is None:
            check_text_length(item, served, limit, param)
        texts.append(prefix + (item.lower() if rules.lower_case else item))
        inputs.append([])

    def encode() -> list[list[int]]:
        if max_length is None:
            return served.tokenizer.encode_batch(texts, limit)
        return served.tokenizer.encode_batch_cut(texts, max_length)

    encoded = iter(await threads.run(sum(map(len, texts)), encode))
    inputs = [tokens or next(encoded) for tokens in inputs]
    for number, tokens in enumerate(inputs):
        if len(tokens) > limit:
            raise context_length_exceeded(len(tokens), limit, f"the model '{served.name}'", param=_param(body, number))
        if not tokens:
            raise ApiError(
                f"Invalid '{_param(body, number)}': the text has no tokens. Send some letters.",
                code="empty_string",
                param=_param(body, number),
            )
    return inputs


def _param(body: EmbeddingBody, number: int) -> str:
    return "input" if len(body.input) == 1 else f"input.{number}"
