"""Whether what is about to be measured is right: kernels against their references, the engine against transformers."""

from collections.abc import Callable
from typing import Any

import torch

from penstock.kernels.attention import cached_attention
from penstock.kernels.attention_reference import attend_reference

from . import engine, workloads
from .kernels import Heads, Layers
from .models import shapes


def run(device: str) -> list[dict[str, Any]]:
    """A row for each check; raises at the first that fails."""
    rows: list[dict[str, Any]] = []
    for name, check in _checks(device):
        rows.append({"check": name, "result": check()})
    return rows


def _checks(device: str) -> list[tuple[str, Callable[[], str]]]:
    head_counts = (Heads("group 2", 16, 8, 128), Heads("group 4", 32, 8, 128), Heads("group 3", 9, 3, 64))
    lengths = {"decode": (3, 700, 1), "prefill": (2, 300, 300), "chunk": (2, 700, 130)}
    checks: list[tuple[str, Callable[[], str]]] = [
        (f"{kind} attention, {heads.name}", lambda heads=heads, kind=kind: _attention(heads, *lengths[kind], device))
        for heads in head_counts
        for kind in lengths
    ]
    checks.append(("engine = transformers' generate", lambda: _engine(device)))
    return checks


def _attention(heads: Heads, num_rows: int, seq_len: int, query_len: int, device: str) -> str:
    """Largest error against the reference in float32, relative to the largest output."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    layers = Layers.make(heads, num_rows, seq_len, query_len, dtype, device)
    key_cache, value_cache = layers.caches[0]
    scale = heads.head_dim**-0.5
    actual = cached_attention(layers.query, key_cache, value_cache, layers.batch, scale=scale)
    expected = attend_reference(
        layers.query.float(), key_cache.float(), value_cache.float(), layers.batch, scale, None, None, None
    )
    error = float((actual.float() - expected).abs().max() / expected.abs().max())
    if not error < 2e-2:
        raise AssertionError(f"the error is {error:.2e}")
    return f"error {error:.1e}"


def _engine(device: str) -> str:
    """Greedy tokens of requests in one batch are those of each alone in transformers, in float32."""
    shape = shapes(smoke=True)["tiny"]
    workload = workloads.equal(5, 70, 24, shape.config.vocab_size)
    reference = shape.make(device, "sdpa", torch.float32)
    expected = [
        reference.generate(torch.tensor([prompt], device=device), max_new_tokens=24, do_sample=False, pad_token_id=0)[
            0, len(prompt) :
        ].tolist()
        for prompt in workload.prompts
    ]
    ours = engine.make_engine(shape, device, max_model_len=256, dtype=torch.float32)
    if engine.run(ours, workload).outputs != expected:
        raise AssertionError("the engine generates other tokens than transformers")
    # A second time: captured graphs, warm caches.
    if engine.run(ours, workload).outputs != expected:
        raise AssertionError("the engine generates other tokens when it is warm")
    return f"{sum(map(len, expected))} tokens equal, twice"
