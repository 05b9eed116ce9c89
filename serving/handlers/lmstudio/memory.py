"""What a native chat remembers: its turns are stored responses, so either API goes on where the other has ended."""

from collections.abc import Sequence
from typing import Any

from ...principal import Principal
from ...protocol.lmstudio.chat import NativeChatBody
from ...protocol.responses.body import ResponseBody
from ...protocol.responses.items import ITEMS, MessageItem
from ...store.items import complete_items
from ...store.store import Store
from ...text.chat_template import Message
from ..responses.answer import response_head, usage_object
from ..responses.messages import messages_of
from ..turn import Turn


class ChatMemory:
    """The conversation that one request belongs to.

    Args:
        store: where it is kept.
        body: the request.
        principal: whose it is.
    """

    def __init__(self, store: Store, body: NativeChatBody, principal: Principal) -> None:
        self._store = store
        self._body = body
        self._principal = principal

    async def messages(self) -> list[Message]:
        """All that was said, and what the request says. A new system prompt takes the place of an older one.

        Raises:
            ApiError: the chat that the request goes on with is not stored.
        """
        before: list[dict[str, Any]] = []
        previous = self._body.previous_response_id
        if previous is not None:
            before = await self._store.responses.history(self._principal.id, previous)
        items = ITEMS.validate_python([*before, *self._said()])
        if self._body.system_prompt is not None:
            items = [item for item in items if not (isinstance(item, MessageItem) and item.role == "system")]
        return messages_of(self._body.system_prompt, items, [])

    async def keep(self, response_id: str, turn: Turn, output: Sequence[tuple[str, list[str]]]) -> None:
        """Store the request and its answer.

        Args:
            response_id: its name.
            turn: finished.
            output: "message" or "reasoning", and the pieces of the text.

        Raises:
            ApiError: 413 too large to be stored; 503 the store cannot be used.
        """
        body = self._body
        asked = ResponseBody.model_validate(
            {
                "model": turn.served.name,
                "input": self._said(),
                "previous_response_id": body.previous_response_id,
                "temperature": body.temperature,
                "top_p": body.top_p,
                "max_output_tokens": body.max_output_tokens,
            }
        )
        response = response_head(asked, response_id, turn.created) | {
            "status": "completed",
            "output": [
                _item(kind, "".join(pieces), f"{response_id[5:]}_{n}") for n, (kind, pieces) in enumerate(output)
            ],
            "usage": usage_object(turn.usage(), 0),
        }
        await self._store.responses.save(self._principal.id, response, complete_items(self._said()))

    def _said(self) -> list[dict[str, Any]]:
        """The request as input items."""
        texts = [("user", part.content) for part in self._body.input]
        if self._body.system_prompt is not None:
            texts.insert(0, ("system", self._body.system_prompt))
        return [
            {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]} for role, text in texts
        ]


def _item(kind: str, text: str, name: str) -> dict[str, Any]:
    """An output item of the Responses API."""
    if kind == "reasoning":
        content = [{"type": "reasoning_text", "text": text}]
        return {"type": "reasoning", "id": f"rs_{name}", "summary": [], "content": content, "status": "completed"}
    parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "id": f"msg_{name}", "role": "assistant", "content": parts, "status": "completed"}
