"""The table and the line to try."""

import io
import json
import shlex

from rich.console import Console

from penstock.scheduler.config import ModelKind
from penstock.scheduler.messages import ModelLoading, ModelReady
from penstock.serving.startup_table import LoadingBars, example, print_ready

URL = "http://127.0.0.1:1234"


def ready(name: str, kind: ModelKind, *, num_kv_blocks: int = 0, num_parameters: int = 135_000_000) -> ModelReady:
    return ModelReady(
        name=name,
        kind=kind,
        architecture="X",
        device="cpu",
        dtype="bfloat16",
        max_model_len=1000,
        vocab_size=10,
        num_kv_blocks=num_kv_blocks,
        block_size=16,
        max_num_seqs=256,
        embedding_dim=0,
        num_parameters=num_parameters,
        weight_bytes=0,
        kv_block_bytes=0,
    )


def shown(models: list[ModelReady], failures: dict[str, str]) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_ready({model.name: model for model in models}, failures, URL, console, reach="this machine", needs_key=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_concurrency_is_what_the_blocks_hold_at_full_length() -> None:
    rows = shown([ready("[a]", "generate", num_kv_blocks=200), ready("e", "embed")], {}).splitlines()
    (chat,) = [row for row in rows if "chat" in row and "│" in row]
    assert [cell.strip() for cell in chat.strip("│").split("│")] == [
        "[a]", "chat", "cpu", "bfloat16", "135 M", "1,000", "200 × 16 tokens", "3.2 at full context",
    ]  # fmt: skip
    (embeddings,) = [row for row in rows if "embeddings" in row]
    assert embeddings.count("–") == 2


def test_billions_and_failures() -> None:
    text = shown([ready("big", "generate", num_kv_blocks=1, num_parameters=8_030_000_000)], {"bad": "no [room]"})
    assert "8.0 B" in text
    assert "bad is not served: no [room]" in text


def test_the_example_asks_a_chat_model_if_there_is_one() -> None:
    words = shlex.split(example([ready("e", "embed"), ready("c", "generate")], URL, needs_key=False))
    assert words[1] == f"{URL}/v1/chat/completions"
    body = json.loads(words[-1])
    assert body["model"] == "c" and body["messages"]
    words = shlex.split(example([ready("e", "embed")], URL, needs_key=False))
    assert words[1] == f"{URL}/v1/embeddings"
    assert json.loads(words[-1]) == {"model": "e", "input": ["rivers and turbines"]}


def test_the_bars_follow_the_models() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with LoadingBars(["a", "b"], console) as bars:
        bars.update({"a": ModelLoading("a", "reading weights", 0.25)}, {"b"})
        bars._progress.refresh()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "reading weights" in text and " 25%" in text and "done" in text and "100%" in text
