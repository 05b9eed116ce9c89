"""The generation runner against `generate`: packed, paged and chunked in any way, the greedy tokens are the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import EOS_ID, FAMILIES, MAX_LENGTH, VOCAB_SIZE, make_tiny
from transformers import AutoModelForCausalLM, PreTrainedModel

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.plan import GenerationBatch, ScheduledRow
from penstock.scheduler.request import BlockId, Request
from penstock.scheduler.runner import GenerationRunner
from penstock.scheduler.sampling_params import SamplingParams

BLOCK_SIZE = 16
NUM_BLOCKS = 64
NUM_NEW = 12
CONFIG = EngineConfig(device="cpu", block_size=BLOCK_SIZE, num_threads=1)
PROMPT_LENGTHS = (1, 5, 16, 33, 70)


def load(folder: Path, **fields: object) -> GenerationRunner:
    spec = ModelSpec(name="tiny", path=str(folder), kind="generate", dtype="float32")
    spec = ModelSpec(**{**{name: getattr(spec, name) for name in spec.__slots__}, **fields})
    runner = GenerationRunner.load(spec, CONFIG, lambda stage, fraction: None)
    runner.use_kv_memory(torch.zeros(NUM_BLOCKS * runner.kv_bytes_per_block, dtype=torch.uint8))
    return runner


def prompts(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def expected_tokens(folder: Path, prompt: list[int]) -> list[int]:
    model = reference(folder)
    input_ids = torch.tensor([prompt])
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=NUM_NEW,
        min_new_tokens=NUM_NEW,
        eos_token_id=None,
    )
    return output[0, len(prompt) :].tolist()


def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


class Loop:
    """The least of a scheduler: shuffled blocks, a fixed chunk size, requests that start at different steps."""

    def __init__(self, runner: GenerationRunner, chunk_size: int) -> None:
        self.runner = runner
        self.chunk_size = chunk_size
        order = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).tolist()
        self.free = [BlockId(block) for block in order]

    def run(self, token_ids: list[list[int]], *, stagger: int = 1) -> list[list[int]]:
        requests = [self._request(index, tokens) for index, tokens in enumerate(token_ids)]
        step = 0
        while any(request.num_output_tokens < NUM_NEW for request in requests):
            started = requests[: 1 + step // stagger] if stagger else requests
            active = [request for request in started if request.num_output_tokens < NUM_NEW]
            rows = [self._row(request) for request in active]
            rows.sort(key=lambda row: row.num_tokens > 1)
            sampled = self.runner.execute(GenerationBatch("tiny", rows))
            samplers = [row.request for row in rows if row.samples]
            for row in rows:
                row.request.num_computed_tokens = row.end
            for request, token in zip(samplers, sampled, strict=True):
                request.token_ids.append(token.token_id)
            step += 1
        return [request.token_ids[len(request.prompt_token_ids) :] for request in requests]

    def _row(self, request: Request) -> ScheduledRow:
        start = request.num_computed_tokens
        num_tokens = min(self.chunk_size, len(request.token_ids) - start)
        while len(request.block_ids) * BLOCK_SIZE < start + num_tokens:
            request.block_ids.append(self.free.pop())
        return ScheduledRow(request, start, num_tokens)

    @staticmethod
    def _request(index: int, token_ids: list[int]) -> Request:
        return Request(
            request_id=str(index),
            model="tiny",
            prompt_token_ids=token_ids,
            sampling=SamplingParams(max_tokens=NUM_NEW, seed=0, temperature=0.0),
            arrival_time=0.0,
            token_ids=list(token_ids),
        )


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    return [expected_tokens(folder, prompt) for prompt in prompts()]


@pytest.fixture(scope="module")
def runner(folder: Path) -> GenerationRunner:
    return load(folder)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_packed_chunks_equal_generate(runner: GenerationRunner, expected: list[list[int]], chunk_size: int) -> None:
    assert Loop(runner, chunk_size).run(prompts()) == expected


def test_alone_equals_generate(runner: GenerationRunner, expected: list[list[int]]) -> None:
    for prompt, tokens in zip(prompts(), expected, strict=True):
        assert Loop(runner, MAX_LENGTH).run([prompt]) == [tokens]


def test_outputs_are_not_degenerate(expected: list[list[int]]) -> None:
    """Else the equality above would prove nothing."""
    assert all(len(set(tokens)) >= NUM_NEW // 3 for tokens in expected)


def test_describes_the_model(runner: GenerationRunner, folder: Path) -> None:
    model = reference(folder)
    assert runner.architecture == type(model).__name__
    assert runner.num_parameters == model.num_parameters()
    assert (runner.vocab_size, runner.max_model_len) == (VOCAB_SIZE, MAX_LENGTH)
    assert runner.eos_token_ids == {EOS_ID}
    assert (runner.dtype, runner.device) == (torch.float32, torch.device("cpu"))


def test_bytes_per_block(runner: GenerationRunner) -> None:
    config = runner._model.config
    num_kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    per_token = config.num_hidden_layers * num_kv_heads * head_dim * 2 * 4
    assert runner.kv_bytes_per_block == BLOCK_SIZE * per_token


def test_no_row_samples(runner: GenerationRunner) -> None:
    request = Loop._request(0, prompts()[2])
    request.block_ids = [BlockId(3)]
    assert runner.execute(GenerationBatch("tiny", [ScheduledRow(request, 0, 4)])) == []
