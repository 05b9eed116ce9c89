"""Tokenising without an engine: what token ids a text or a chat becomes, and what text token ids are."""

from dataclasses import dataclass

import orjson

from ..errors import context_length_exceeded
from ..principal import Principal
from ..protocol.tokenize import MAX_TOKENS, DetokenizeBody, TokenizeChatBody, TokenizeTextBody
from ..text.served_model import ServedModel
from .chat_request import turn_request
from .sampling import check_token_ids
from .services import Services
from .turn_prompt import render_prompt


@dataclass(frozen=True, slots=True)
class TokenizeHandler:
    """POST /tokenize and POST /detokenize, behind validated bodies; all raise what `Services.find` does."""

    services: Services

    async def tokenize(self, body: TokenizeTextBody | TokenizeChatBody, principal: Principal) -> bytes:
        """The JSON answer: the tokens of a text, or of a chat's prompt.

        Raises:
            ApiError: the model's chat template cannot render it.
        """
        if isinstance(body, TokenizeChatBody):
            served, ready = await self.services.find(body.model, "generate")
            request = turn_request(body, principal)
            token_ids = (await render_prompt(request, served, ready, self.services.threads)).token_ids
        else:
            served, ready = await self.services.find(body.model, None)
            token_ids = await self._encode(body, served)
        table = served.tokenizer.table

        def write() -> bytes:
            names = [table.name(token_id) for token_id in token_ids] if body.return_token_strs else None
            lengths = {"count": len(token_ids), "max_model_len": ready.max_model_len}
            return orjson.dumps({**lengths, "tokens": token_ids, "token_strs": names})

        return await self.services.threads.run(len(token_ids), write)

    async def detokenize(self, body: DetokenizeBody) -> bytes:
        """The JSON answer: the text of tokens, special ones included.

        Raises:
            ApiError: a token id is outside the vocabulary.
        """
        served, ready = await self.services.find(body.model, None)
        check_token_ids(body.tokens, ready, "tokens")

        def decode() -> bytes:
            return orjson.dumps({"prompt": served.tokenizer.decode(body.tokens, skip_special_tokens=False)})

        return await self.services.threads.run(len(body.tokens), decode)

    async def _encode(self, body: TokenizeTextBody, served: ServedModel) -> list[int]:
        def encode() -> list[int]:
            return served.tokenizer.encode(body.prompt, MAX_TOKENS, add_special_tokens=body.add_special_tokens)

        token_ids = await self.services.threads.run(len(body.prompt), encode)
        if len(token_ids) > MAX_TOKENS:
            raise context_length_exceeded(len(token_ids), MAX_TOKENS, "one request", param="prompt")
        return token_ids
