"""The models seen from outside: OpenAI's list, Codex's, aliases and defaults, and what is in memory."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import BARE, CHAT, EMBED, Front, error, open_front, tiny_card

from penstock.scheduler.messages import ModelFailed
from penstock.serving.errors import ApiError
from penstock.serving.handlers.models import ModelsHandler
from penstock.serving.shelf.downloads import DownloadJob, Downloads


async def test_models_are_listed_with_what_clients_look_for() -> None:
    async with open_front() as front:
        del front.engine.models[BARE]
        listed = (await front.http.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert listed["data"][0] == {
            "id": CHAT,
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "penstock",
            "root": CHAT,
            "type": "llm",
            "state": "loaded",
            "max_model_len": 256,
            "architecture": "tiny",
            "publisher": "local",
            "quantization": "F32",
            "num_parameters": 1000,
            "size_bytes": 4000,
            "requests_in_flight": 0,
            "ttl": None,
            "ttl_left": None,
            "load_time_seconds": 0.0,
            "memory_bytes": 4000,
        }
        assert "requests_in_flight" not in listed["data"][1]
        assert [(m["id"], m["state"], m["type"]) for m in listed["data"][1:]] == [
            (BARE, "not-loaded", "llm"),
            (EMBED, "loaded", "embeddings"),
        ]
        assert (await front.http.get(f"/v1/models/{CHAT}")).json() == listed["data"][0]
        error(await front.http.get("/v1/models/owner/unknown"), 404, "model_not_found", "model")
        assert [m.id async for m in front.openai.models.list()] == [CHAT, BARE, EMBED]


async def test_hub_ids_are_found_by_their_path() -> None:
    async with open_front() as front:
        front.put(replace(front.shelf[CHAT], name="owner/name"))
        assert (await front.http.get("/v1/models/owner/name")).status_code == 200
        assert (await front.openai.models.retrieve("owner/name")).object == "model"


async def test_failed_models_are_not_listed_but_those_without_room_are() -> None:
    async with open_front() as front:
        front.engine.failed[CHAT] = ModelFailed(CHAT, "broken")
        front.engine.failed[BARE] = ModelFailed(BARE, "too big", "out_of_memory")
        ids = [model["id"] for model in (await front.http.get("/v1/models")).json()["data"]]
        assert ids == [BARE, EMBED]
        assert "broken" in error(await front.http.get(f"/v1/models/{CHAT}"), 404, "model_not_found", "model")
        assert (await front.http.get("/health")).json()["failed"] == {CHAT: "broken"}


async def test_a_resident_model_tells_its_memory() -> None:
    async with open_front() as front:
        assert "memory_bytes" not in (await front.http.get("/v1/models/none")).json()
        assert (await front.http.get(f"/v1/models/{CHAT}")).json()["memory_bytes"] == 4000
        await front.chat()  # whose last step had 25 blocks in use
        assert (await front.http.get(f"/v1/models/{CHAT}")).json()["memory_bytes"] == 4000 + 25 * 500


async def test_codex_finds_its_list_beside_openais() -> None:
    async with open_front() as front:
        front.registry._cards[BARE] = replace(tiny_card(front.shelf[BARE]), reasoning=True, trained_for_tool_use=True)
        chat, bare = (await front.http.get("/v1/models")).json()["models"]
        assert (chat["slug"], chat["context_window"], chat["supported_reasoning_levels"]) == (CHAT, 256, [])
        assert [level["effort"] for level in bare["supported_reasoning_levels"]] == ["low", "medium", "high"]
        assert (chat["supports_parallel_tool_calls"], bare["supports_parallel_tool_calls"]) == (False, True)
        for key in ("display_name", "shell_type", "base_instructions", "truncation_policy", "apply_patch_tool_type"):
            assert chat[key]


async def test_an_alias_is_another_name_and_answers_bear_the_models_own() -> None:
    async with open_front() as front:
        front.registry.aliases |= {"gpt-4o": CHAT, "gone": "nothing", EMBED: CHAT}
        listed = (await front.http.get("/v1/models")).json()["data"]
        assert [(m["id"], m["root"]) for m in listed] == [(n, n) for n in (CHAT, BARE, EMBED)] + [("gpt-4o", CHAT)]
        assert (await front.http.get("/v1/models/gpt-4o")).json()["id"] == "gpt-4o"
        answer = await front.chat(model="gpt-4o")
        assert (answer.status_code, answer.json()["model"]) == (200, CHAT)
        error(await front.chat(model="gone"), 404, "model_not_found", "model")
        assert (await front.embed()).status_code == 200  # a model's own name is stronger than an alias


async def test_a_default_model_answers_to_unknown_names_only_where_it_is_set() -> None:
    async with open_front() as front:
        message = error(await front.chat(model="gpt-9"), 404, "model_not_found", "model")
        assert CHAT in message
        front.registry._defaults = {"generate": CHAT, "embed": EMBED}
        assert (await front.chat(model="gpt-9")).json()["model"] == CHAT
        assert (await front.embed(model="text-embedding-3-small")).status_code == 200
        error(await front.embed(model=CHAT), 400, "model_not_supported", "model")
        error(await front.http.get("/v1/models/gpt-9"), 404, "model_not_found", "model")


async def test_no_model_is_deleted_over_http() -> None:
    async with open_front() as front:
        message = error(await front.http.delete(f"/v1/models/{CHAT}"), 403, "model_not_deletable", "model")
        assert f"penstock rm {CHAT}" in message
        error(await front.http.delete("/v1/models/gpt-9"), 404, "model_not_found", "model")


def handler_of(front: Front, home: Path = Path("nowhere")) -> ModelsHandler:
    return ModelsHandler(replace(front.app.state.services, downloads=Downloads(home)))


async def test_loading_and_unloading_by_hand() -> None:
    async with open_front() as front:
        handler = handler_of(front)
        assert await handler.unload(CHAT) == CHAT
        assert handler.state(CHAT) == "not-loaded"
        with pytest.raises(ApiError, match="is not loaded") as refusal:
            await handler.unload(CHAT)
        assert (refusal.value.status, refusal.value.code) == (404, "model_not_found")
        card, ready, seconds = await handler.load(CHAT, ttl=60)
        assert (card.name, ready.name, handler.state(CHAT)) == (CHAT, CHAT, "loaded") and seconds >= 0
        assert handler.residents()[CHAT].ttl == 60
        with pytest.raises(ApiError, match="not served here"):
            await handler.load("gpt-9")


async def test_downloads_are_only_for_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_front() as front:
        handler = handler_of(front, tmp_path)

        async def run(job: DownloadJob) -> None:
            job.status = "failed"

        monkeypatch.setattr(handler.services.downloads, "_run", run)
        assert await handler.download(CHAT) is None
        job = await handler.download("org/name")
        assert job is not None and await handler.download_status(job.job_id) == (job, 0)
        await handler.services.downloads.close()
