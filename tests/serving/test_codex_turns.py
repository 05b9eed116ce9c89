"""Codex against the scripted front: its recorded request, and the program itself where npm's package is at hand."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from codex import codex_binary, run_codex, write_config
from fake_engine import CHAT, Front, Script, model_ready, open_front, tiny_tokenizer, use_template
from tcp_front import listening

from penstock.scheduler.messages import Submit

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "codex_request.json").read_text(encoding="utf-8"))
LM_STUDIO_PORT = 1234
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools> Call them in <tool_call></tool_call>."
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def give_room(front: Front) -> None:
    """Codex's prompt is long, and the tiny tokenizer needs about a token a letter."""
    front.engine.models[CHAT] = model_ready(CHAT, max_model_len=500_000, num_kv_blocks=50_000)
    front.engine.tokens_per_step = 4


def prompt_of(job: Submit) -> str:
    text: str = tiny_tokenizer().decode(job.prompt_token_ids, skip_special_tokens=False)
    return text


async def test_a_recorded_request_replays() -> None:
    async with open_front() as front:
        give_room(front)
        use_template(front, TEMPLATE)
        answer = await front.http.post("/v1/responses", json=RECORDED["body"], headers=RECORDED["headers"])
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-penstock-tools-not-offered"] == "web_search"
        last = json.loads(answer.text.rstrip().rpartition("data: ")[2])
        assert last["type"] == "response.completed" and last["response"]["store"] is False
        prompt = prompt_of(front.engine.job)
        order = ["Work on the code", "show a.txt", "cat a.txt", "Output:\nhello", "multi_agent_v1__wait_agent", "too"]
        assert [prompt.rindex(text) for text in order] == sorted(prompt.rindex(text) for text in order)
        assert "web_search" not in prompt and "Nobody is there.\n[an image" in prompt


async def test_a_text_turn(tmp_path: Path) -> None:
    codex_binary()
    async with open_front() as front, listening(front) as base_url:
        give_room(front)
        write_config(tmp_path, base_url, CHAT)
        run = await asyncio.to_thread(run_codex, "say hello", tmp_path)
        assert run.status == 0, run
        assert [message["text"] for message in run.items("agent_message")] == ["hello world"]
        assert run.usage["input_tokens"] == len(front.engine.job.prompt_token_ids)


async def test_a_turn_that_runs_a_command(tmp_path: Path) -> None:
    codex_binary()
    call = {"name": "exec_command", "arguments": {"cmd": "echo from-the-shell-$((40 + 2))"}}

    def script(job: Submit) -> Script:
        seen = "from-the-shell-42" in prompt_of(job)
        front.engine.text = "It printed 42." if seen else f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        return front.engine.say(job)

    async with open_front() as front, listening(front) as base_url:
        give_room(front)
        use_template(front, TEMPLATE)
        front.engine.script = script
        write_config(tmp_path, base_url, CHAT)
        run = await asyncio.to_thread(run_codex, "run it", tmp_path)
        assert run.status == 0, run
        (command,) = run.items("command_execution")
        assert "from-the-shell-42" in command["aggregated_output"] and command["exit_code"] == 0
        assert [message["text"] for message in run.items("agent_message")] == ["It printed 42."]
        first, second = (job.prompt_token_ids for job in front.engine.jobs if isinstance(job, Submit))
        assert second[: len(first)] == first  # so that the prefix cache has it all


async def test_a_patch_by_the_catalogue_that_the_server_gives(tmp_path: Path) -> None:
    codex_binary()
    patch = "*** Begin Patch\n*** Add File: greeting.txt\n+hello\n*** End Patch"

    def script(job: Submit) -> Script:
        begins = len(front.engine.jobs) == 1
        front.engine.text = (
            f'<custom_tool_call name="apply_patch">\n{patch}\n</custom_tool_call>' if begins else "Done."
        )
        return front.engine.say(job)

    async with open_front() as front, listening(front) as base_url:
        give_room(front)
        use_template(front, TEMPLATE)
        front.engine.script = script
        catalogue = tmp_path / "catalogue.json"
        catalogue.write_text((await front.http.get("/v1/models")).text, encoding="utf-8")
        write_config(tmp_path, base_url, CHAT, model_catalog_json=str(catalogue))
        run = await asyncio.to_thread(run_codex, "greet", tmp_path, "--sandbox", "workspace-write")
        assert run.status == 0, run
        assert not run.items("error")  # such as a warning that nothing is known of the model
        assert (tmp_path / "workplace" / "greeting.txt").read_text(encoding="utf-8") == "hello\n"
        assert [message["text"] for message in run.items("agent_message")] == ["Done."]
        again = front.engine.jobs[-1]
        assert isinstance(again, Submit) and patch in prompt_of(again)


async def test_a_context_that_is_too_short_is_said_once(tmp_path: Path) -> None:
    codex_binary()
    async with open_front() as front, listening(front) as base_url:
        write_config(tmp_path, base_url, CHAT)
        run = await asyncio.to_thread(run_codex, "say hello", tmp_path)
        assert run.status != 0
        (failed,) = [event for event in run.events if event["type"] == "turn.failed"]
        assert "context window" in failed["error"]["message"]
        assert front.engine.jobs == []


async def test_lm_studios_quick_route(tmp_path: Path) -> None:
    codex_binary()
    async with open_front() as front:
        give_room(front)
        try:
            async with listening(front, LM_STUDIO_PORT):
                oss: Any = ("--oss", "--local-provider", "lmstudio", "-m", CHAT)
                run = await asyncio.to_thread(run_codex, "say hello", tmp_path, *oss)
        except OSError:
            pytest.skip(f"port {LM_STUDIO_PORT} is taken")
        assert run.status == 0, run
        assert [message["text"] for message in run.items("agent_message")] == ["hello world"]
