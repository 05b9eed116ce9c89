"""Claude Code against the scripted front: a turn in which it runs a command, where npm's package is at hand."""

import asyncio
import json
from pathlib import Path

from fake_engine import CHAT, Script, model_ready, open_front, tiny_tokenizer, use_template
from npm_agents import needs_npm, run_claude
from tcp_front import listening

from penstock.scheduler.messages import Submit

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools> Call them in <tool_call></tool_call>."
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt_of(job: Submit) -> str:
    text: str = tiny_tokenizer().decode(job.prompt_token_ids, skip_special_tokens=False)
    return text


@needs_npm
async def test_a_turn_that_runs_a_command(tmp_path: Path) -> None:
    arguments = {"command": "echo from-the-shell-$((40 + 2))", "description": "Prints a number"}
    call = {"name": "Bash", "arguments": arguments}

    def script(job: Submit) -> Script:
        prompt = prompt_of(job)
        calls = '"name": "Bash"' in prompt and "from-the-shell-42" not in prompt
        front.engine.text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>" if calls else "It printed 42."
        return front.engine.say(job)

    async with open_front() as front, listening(front) as base_url:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=500_000, num_kv_blocks=50_000)
        front.engine.tokens_per_step = 4
        use_template(front, TEMPLATE)
        front.engine.script = script
        allowed = ("--allowedTools", "Bash")
        where = base_url.removesuffix("/v1")
        printed = await asyncio.to_thread(run_claude, "run it", *allowed, home=tmp_path, base_url=where, model=CHAT)
        result = json.loads(printed)
        assert result["result"] == "It printed 42." and not result["is_error"], result
        assert result["num_turns"] == 2
        with_tools = [job for job in front.engine.jobs if isinstance(job, Submit) and "<tools>" in prompt_of(job)]
        assert "from-the-shell-42" in prompt_of(with_tools[-1])
