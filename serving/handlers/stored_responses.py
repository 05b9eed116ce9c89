"""What becomes of a response after POST: read, streamed again, cancelled, deleted, its input listed."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ApiError
from ..protocol.queries import ItemsQuery
from ..store.objects import page_of
from ..store.responses import UNFINISHED, unknown_cursor
from .includes import with_included
from .recording import Recording
from .services import Services

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredResponsesHandler:
    """The routes below /v1/responses/{id}.

    Responses that are still being made are found in `services.runs`, all others in `services.store`.
    """

    services: Services

    async def get(self, principal: str, response_id: str, include: Sequence[str]) -> Json:
        """The response object as of now.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        run = self.services.runs.find(principal, response_id)
        response = run.response if run else await self.services.store.responses.get(principal, response_id)
        return response | {"output": with_included(response["output"], include)}

    async def events(self, principal: str, response_id: str, starting_after: int) -> AsyncGenerator[bytes]:
        """The framed events of its stream with a higher sequence number, those to come included.

        Raises:
            ApiError: 404, there is no such response; 400, it was not streamed; 409, it is made elsewhere; 503.
        """
        run = self.services.runs.find(principal, response_id)
        if run is not None:
            if not run.is_streamed:
                raise _not_streamed(response_id)
            return run.recording.follow(starting_after)
        response = await self.services.store.responses.get(principal, response_id)
        if response["status"] in UNFINISHED:
            raise _made_elsewhere(response_id)
        events = await self.services.store.responses.events(principal, response_id)
        if not events:
            raise _not_streamed(response_id)
        recording = await asyncio.to_thread(Recording.of, events)
        return recording.follow(starting_after)

    async def cancel(self, principal: str, response_id: str) -> Json:
        """End a background response; one that has ended stays as it is.

        Raises:
            ApiError: 404, there is none; 400, it is not in the background; 409, it is made elsewhere; 503.
        """
        run = self.services.runs.find(principal, response_id)
        response = run.response if run else await self.services.store.responses.get(principal, response_id)
        if not response.get("background"):
            raise ApiError(
                f"Response '{response_id}' is not in the background. Only responses created with background: true can "
                "be cancelled; others end when their connection is closed.",
                code="invalid_value",
                param="response_id",
            )
        if run is not None:
            return await run.cancel()
        if response["status"] in UNFINISHED:
            raise _made_elsewhere(response_id)
        return response

    async def delete(self, principal: str, response_id: str) -> Json:
        """Delete a response; one that is being made ends.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        run = self.services.runs.find(principal, response_id)
        if run is not None:
            await run.discard()
        if run is None or run.background:  # those have been in the store since they began
            await self.services.store.responses.delete(principal, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    async def input_items(self, principal: str, response_id: str, query: ItemsQuery) -> Json:
        """A page of the items that its request brought.

        Raises:
            ApiError: 404, there is no such response; 400, unknown `after`; 503, the store cannot be used.
        """
        run = self.services.runs.find(principal, response_id)
        if run is not None:
            page = page_of(run.input_items, after=query.after, limit=query.limit, order=query.order)
            if page is None:
                raise unknown_cursor(query.after, f"response '{response_id}'")
        else:
            page = await self.services.store.responses.input_items(
                principal, response_id, after=query.after, limit=query.limit, order=query.order
            )
        return page.to_json(with_included(page.items, query.include))


def _made_elsewhere(response_id: str) -> ApiError:
    return ApiError(
        f"Response '{response_id}' is being made by another process of this server, or was until that process ended. "
        "Read it without stream, and try again when its status is neither queued nor in_progress.",
        status=409,
        code="response_made_elsewhere",
        param="response_id",
    )


def _not_streamed(response_id: str) -> ApiError:
    return ApiError(
        f"The events of response '{response_id}' were not recorded. Only responses created with stream: true or "
        "background: true can be streamed again; read it without stream.",
        code="invalid_value",
        param="stream",
    )
