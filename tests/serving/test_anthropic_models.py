"""GET /v1/models for clients that send Anthropic's version header."""

import pytest
from anthropic import AsyncAnthropic, NotFoundError
from fake_engine import BARE, CHAT, EMBED, open_front


async def test_the_list_and_its_pages() -> None:
    async with open_front() as front:
        client = AsyncAnthropic(
            api_key="none", base_url="http://front", http_client=front.http, _strict_response_validation=True
        )
        page = await client.models.list()
        assert [model.id for model in page.data] == [CHAT, BARE] and page.has_more is False
        assert page.data[0].max_input_tokens == 256 and page.data[0].created_at.year == 2023
        assert [model.id async for model in client.models.list(limit=1)] == [CHAT, BARE]
        before = await client.models.list(before_id=BARE)
        assert [model.id for model in before.data] == [CHAT] and before.first_id == CHAT
        assert (await client.models.retrieve(CHAT)).display_name == CHAT
        with pytest.raises(NotFoundError):
            await client.models.retrieve("none")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=none", f"before_id={EMBED}"])
async def test_bad_queries(query: str) -> None:
    async with open_front() as front:
        response = await front.http.get(f"/v1/models?{query}", headers={"anthropic-version": "2023-06-01"})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error" and query.partition("=")[0] in error["message"]
