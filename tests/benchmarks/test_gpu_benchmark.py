"""The GPU benchmark's parts that need no GPU: what it calls a floor, its workloads, and its peer."""

import pytest
import torch
from on_gpu import checks, engine, peer, workloads
from on_gpu.models import shapes
from triton_interpreter import interpreter


def test_the_nano_workload_has_the_published_number_of_tokens() -> None:
    workload = workloads.nano(smoke=False)
    assert (len(workload.prompts), sum(map(len, workload.prompts))) == (256, 142_827)
    assert workload.num_output_tokens == 133_966


@pytest.mark.parametrize(
    ("model", "rows", "milliseconds"),
    [("llama-3.1-8b", 1, 3.52), ("llama-3.1-8b", 256, 12.86), ("qwen3-0.6b", 1, 0.305), ("qwen3-0.6b", 256, 7.378)],
)
def test_floors_agree_with_arithmetic_done_by_hand(model: str, rows: int, milliseconds: float) -> None:
    floor = shapes(smoke=False)[model].decode_floor(rows, 1024, 4.3e12, 790e12)
    assert 1e3 * floor == pytest.approx(milliseconds, rel=0.01)


def test_the_prefill_floor_agrees_with_arithmetic_done_by_hand() -> None:
    assert shapes(smoke=False)["llama-3.1-8b"].prefill_floor(8192, 790e12) == pytest.approx(0.167, rel=0.02)


def test_the_checks_pass_on_a_cpu() -> None:
    assert checks.run("cpu")[-1]["result"].startswith("120 tokens equal")


@pytest.mark.parametrize("best", [False, True])
def test_transformers_continuous_batching_generates_what_the_engine_does(best: bool) -> None:
    shape = shapes(smoke=True)["tiny"]
    workload = workloads.equal(3, 40, 12, shape.config.vocab_size)
    ours = engine.run(engine.make_engine(shape, "cpu", max_model_len=64), workload)
    assert peer.run(shape.make("cpu", "sdpa"), workload, best=best).outputs == ours.outputs


def decode_error_of_the_lent_function() -> float:
    """Difference between `with_kvcache` and the dense attention of each row, in the interpreter's process."""
    generator = torch.Generator().manual_seed(0)
    key_cache, value_cache = torch.randn(2, 5, peer.PAGE_SIZE, 2, 32, generator=generator)
    query = torch.randn(3, 1, 4, 32, generator=generator)
    key, value = torch.randn(2, 3, 1, 2, 32, generator=generator)
    table = torch.tensor([[3, 1], [4, -1], [-1, -1]], dtype=torch.int32)
    lengths = torch.tensor([300, 7, -1], dtype=torch.int32)  # the last row is padding
    untouched = key_cache[0].clone()
    actual = peer.with_kvcache(query, key_cache, value_cache, key, value, lengths, block_table=table)
    assert torch.equal(key_cache[0], untouched)
    errors = []
    for row, length in enumerate(lengths[:2].tolist()):
        blocks = table[row, : length // peer.PAGE_SIZE + 1].long()
        assert torch.equal(key_cache[blocks].flatten(0, 1)[length], key[row, 0])
        keys, values = (cache[blocks].flatten(0, 1)[: length + 1].transpose(0, 1) for cache in (key_cache, value_cache))
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[row].transpose(0, 1), keys, values, enable_gqa=True
        )
        errors.append((actual[row] - expected.transpose(0, 1)).abs().max())
    return float(max(errors))


def test_the_decode_function_lent_to_transformers_stores_and_attends() -> None:
    with interpreter() as executor:
        assert executor.submit(decode_error_of_the_lent_function).result() < 1e-4
