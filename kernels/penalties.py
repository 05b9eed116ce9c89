"""Changes to single logits before sampling: bias, penalties, forbidden tokens. All in place, for many rows at once.

The entries of all rows come as one list of (row, token) pairs, no pair twice in a call: requests differ in how many
tokens they touch, and a dense [R, V] table of counts would be as large as the logits. Legend: R rows, V vocabulary, N
entries.
"""

import torch


def add_bias(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor) -> None:
    """Add `bias` [N] float32 to `logits` [R, V] float32 at `rows` [N] and `token_ids` [N], both int64."""
    logits[rows, token_ids] = logits[rows, token_ids] + bias


def forbid(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Make the tokens at `rows` [N] and `token_ids` [N], both int64, impossible in `logits` [R, V] float32."""
    logits[rows, token_ids] = -torch.inf


def penalize(
    logits: torch.Tensor,
    rows: torch.Tensor,
    token_ids: torch.Tensor,
    output_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """Apply the penalties for tokens that a request has seen.

    First the repetition penalty (Keskar et al., CTRL, 2019): positive logits are divided by it, negative ones
    multiplied. Then OpenAI's two, which count the output only: `frequency * count + presence * (count > 0)` is
    subtracted.

    Args:
        logits: [R, V] float32.
        rows: [N] int64.
        token_ids: [N] int64, every token of a row's prompt and output once.
        output_counts: [N] float32, how often the token is in the output; 0 for tokens of the prompt alone.
        repetition: [N] float32, > 0; 1 for none.
        presence: [N] float32.
        frequency: [N] float32.
    """
    values = logits[rows, token_ids]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * output_counts + presence * (output_counts > 0)
    logits[rows, token_ids] = values
