"""OpenAI's agents library runs its tool loop over the Responses endpoint."""

import json

from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from fake_engine import CHAT, Script, model_ready, open_front, use_template

from penstock.scheduler.messages import Submit

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} <tool_call></tool_call>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"Fog in {city}."


async def test_a_tool_loop() -> None:
    set_tracing_disabled(True)
    call = {"name": "weather", "arguments": {"city": "Bern"}}
    async with open_front() as front:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=8192)
        use_template(front, TEMPLATE)

        def script(job: Submit) -> Script:
            first = len(front.engine.jobs) == 1
            front.engine.text = f"<tool_call>{json.dumps(call)}</tool_call>" if first else "Foggy."
            return front.engine.say(job)

        front.engine.script = script
        model = OpenAIResponsesModel(model=CHAT, openai_client=front.openai)
        for settings in (ModelSettings(), ModelSettings(store=False)):
            front.engine.jobs.clear()
            agent = Agent("clerk", instructions="Be brief.", model=model, tools=[weather], model_settings=settings)
            result = await Runner.run(agent, "What is the weather in Bern?")
            assert result.final_output == "Foggy." and len(front.engine.jobs) == 2
            front.engine.jobs.clear()
            streamed = Runner.run_streamed(agent, "What is the weather in Bern?")
            kinds = [
                event.item.type async for event in streamed.stream_events() if event.type == "run_item_stream_event"
            ]
            assert kinds == ["tool_call_item", "tool_call_output_item", "message_output_item"]
