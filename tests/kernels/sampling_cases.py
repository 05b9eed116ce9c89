"""Rows of logits with parameters of every kind, for tests of the implementations of `sample_rows`."""

import math

import torch

from penstock.kernels.sampling_torch import sample_rows_torch

LARGEST = torch.finfo(torch.float32).max

# temperature, top_k, top_p, min_p; top_k 0 for all
KINDS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 1.0, 0.05),
    (1e-30, 0, 1.0, 0.0),
    (1e30, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (0.9, 7, 1.0, 0.0),
    (1.5, 300, 1.0, 0.0),
    (1.0, 40, 0.9, 0.0),
    (2.0, 0, 0.9, 0.0),
    (1.0, 0, 1e-9, 0.0),
    (3.0, 0, 0.999, 1e-3),
    (1.0, 0, 0.5, 0.3),
    (0.8, 90, 0.95, 0.02),
    (1.0, 3, 0.34, 1.0),
    (100.0, 2, 0.5, 0.0),  # top_p takes one token of two that are nearly as likely
]


def cases(vocab_size: int, dtype: torch.dtype, num_draws: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [R, V] with a stride and parameters [R, 5]: every kind on smooth, tied and odd rows."""
    generator = torch.Generator().manual_seed(vocab_size)
    rows = []
    for _ in range(num_draws):
        smooth = torch.randn(vocab_size, generator=generator) * 3
        few = torch.full((vocab_size,), -math.inf)
        few[torch.randint(0, vocab_size, (3,), generator=generator)] = 0.0
        odd = smooth.clone()
        odd[torch.rand(vocab_size, generator=generator) < 0.2] = math.nan
        odd[torch.rand(vocab_size, generator=generator) < 0.2] = -LARGEST
        rows += [smooth, smooth.round(), few, odd, torch.zeros(vocab_size)]
    rows += [torch.full((vocab_size,), math.nan), torch.full((vocab_size,), -math.inf)]
    rows += [torch.full((vocab_size,), math.inf), torch.full((vocab_size,), -LARGEST)]
    values = torch.stack(rows).repeat(len(KINDS), 1)
    params = torch.tensor(KINDS, dtype=torch.float64).repeat_interleave(len(rows), dim=0)
    params[:, 1] = torch.where(params[:, 1] == 0, vocab_size, params[:, 1])
    uniforms = torch.rand(len(params), generator=generator, dtype=torch.float64)
    uniforms[::7] = 0.0
    uniforms[3::7] = 1 - 2**-53
    padded = torch.full((len(values), vocab_size + 3), 100.0)
    padded[:, :vocab_size] = values
    return padded.to(dtype)[:, :vocab_size], torch.cat((params, uniforms.unsqueeze(1)), dim=1)


def reference(logits: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """What the implementations have to give: every row sorted as a whole."""
    return sample_rows_torch(logits, params, candidates=())
