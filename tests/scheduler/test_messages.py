"""Every message survives its frames, and what is no message is refused."""

import subprocess
import sys

import pytest

from penstock.scheduler import messages
from penstock.scheduler.config import ModelSpec
from penstock.scheduler.messages import (
    Cancel,
    Embed,
    EmbeddingOutput,
    Hello,
    JobError,
    JobTimings,
    Load,
    Message,
    ModelFailed,
    ModelLoading,
    ModelReady,
    ModelStats,
    ModelUnloaded,
    RequestOutput,
    StepOutputs,
    Submit,
    TokenLogprobs,
    Unload,
    WorkerReady,
)
from penstock.scheduler.sampling_params import SamplingParams

PARAMS = SamplingParams(
    max_tokens=3, seed=-(2**63), logit_bias={7: -1.5}, stop_token_ids=(1, 2), logprobs=2, grammar="a"
)
OUTPUT = RequestOutput(
    "r",
    [5],
    num_cached_tokens=16,
    finish_reason="stop",
    stop_token_id=5,
    logprobs=[TokenLogprobs(-0.5, [5, 6], [-0.5, -1.0])],
    error=JobError("no", "invalid_value", "n", 400),
    timings=JobTimings(0.1, 0.2, 0.3, 1),
)
MESSAGES: list[Message] = [
    Hello(),
    Submit("r", "m", [1, 2], PARAMS, 1.5, [3], "alice", 2.0, -1, "salt", alone=True),
    Embed("e", "m", [[1], [2, 3]], 1.5, "bob", 2.0, 2, alone=True),
    Cancel(["r", "e"]),
    Load(ModelSpec("m", "/models/m", "generate")),
    Unload("m"),
    ModelLoading("m", "reading weights", 0.5),
    ModelReady(
        "m",
        "generate",
        "LlamaForCausalLM",
        "cpu",
        "bfloat16",
        8192,
        49152,
        100,
        16,
        64,
        0,
        135_000_000,
        270_000_000,
        1000,
    ),
    ModelFailed("m", "no weights"),
    ModelUnloaded("m"),
    WorkerReady(),
    StepOutputs([OUTPUT], [EmbeddingOutput("e", 2, b"\0" * 8)], {"m": ModelStats(1, 2, 3, 4, 5, 6, 7, 8, 9)}, 0.1, 64),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_frames(message: Message) -> None:
    assert messages.decode(messages.encode(message)) == message


def test_every_kind_is_covered_here() -> None:
    assert {type(message) for message in MESSAGES} == set(messages._KINDS.values())


@pytest.mark.parametrize(
    "frames",
    [[], [b"Hello"], [b"Nothing", b"\x80"], [b"Submit", b"\x80"], [b"Submit", b"\xff"], [b"Hello", b"\x80", b""]],
)
def test_what_is_no_message_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match="."):
        messages.decode(frames)


def test_the_messages_need_only_the_standard_library() -> None:
    code = "import sys, penstock.scheduler.messages; print({'msgspec', 'zmq', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_tokens", 0, "max_tokens is 0, but must be at least 1"),
        ("temperature", -1.0, "temperature is -1.0, but must be 0 or more"),
        ("temperature", float("nan"), "finite"),
        ("top_p", 0.0, "in .0, 1."),
        ("min_p", 1.5, "in .0, 1."),
        ("top_k", -1, "0 .all. or more"),
        ("repetition_penalty", 0.0, "more than 0"),
        ("presence_penalty", float("inf"), "finite"),
        ("logprobs", 21, "between 0 and 20"),
        ("min_tokens", 9, "between 0 and max_tokens"),
        ("seed", 2**63, "64-bit"),
        ("logit_bias", {3: float("nan")}, "finite"),
    ],
)
def test_sampling_parameters_name_what_is_wrong(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingParams(**{"max_tokens": 5, "seed": 0, field: value})  # type: ignore[arg-type]
