"""The attention function that every transformers decoder calls here: `penstock_paged`.

It knows every keyword that changes what attention means and refuses those it does not know: a model whose window,
bias or mask were dropped in silence would answer fluently and wrongly.
"""

import torch
from transformers import AttentionInterface

from ..context import current_context
from ..errors import UnsupportedModelError

ATTENTION_NAME = "penstock_paged"  # transformers gives a meaning to "flash", "/" and "paged|" in such a name

# Passed along by models and without effect on attention: positions are applied by then, and no cache object is used.
_HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "position_embeddings",
        "use_cache",
        "past_key_values",
        "past_key_value",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "logits_to_keep",
    }
)


def register() -> None:
    """Make `penstock_paged` known to transformers; needed before a model that names it is loaded.

    No mask function goes with it: transformers then builds no masks, and `attention_mask` arrives as None.
    """
    AttentionInterface.register(ATTENTION_NAME, paged_attention_forward)


def paged_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """One layer's causal attention over the paged cache of the current forward context.

    Args:
        module: the attention module; its `layer_idx` finds the cache.
        query: [1, H, T, D], positions already applied.
        key: [1, K, T, D], likewise.
        value: [1, K, T, Dv].
        attention_mask: must be None.
        scaling: factor of the scores; None: 1 / sqrt(D).
        dropout: must be 0.
        sliding_window: keys a query sees, its own included; None: all.
        softcap: scores become `softcap * tanh(score / softcap)`; None: they stay.
        s_aux: [H] attention sinks: one more logit a head in the softmax's denominator.
        is_causal: must not be False, here or on the module.
        position_bias: must be None.
        others: anything else a model passes; must be harmless or None.

    Returns:
        Output [1, T, H, Dv], contiguous, and None for the weights.

    Raises:
        UnsupportedModelError: the model asks for attention that the paged kernels do not compute.
    """
    if not others.keys() <= _HARMLESS:
        unknown = {name: value for name, value in others.items() if name not in _HARMLESS and value is not None}
        if unknown:
            raise _unsupported(module, f"the unknown argument(s) {', '.join(sorted(unknown))}")
    if attention_mask is not None:
        raise _unsupported(module, "an attention mask of its own")
    if position_bias is not None:
        raise _unsupported(module, "a position bias")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise _unsupported(module, "attention to later tokens (is_causal=False)")
    if dropout:
        raise _unsupported(module, f"dropout {dropout} while serving")
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    output = current_context().attend(
        layer_idx,
        query[0].transpose(0, 1),  # [T, H, D]
        key[0].transpose(0, 1),  # [T, K, D]
        value[0].transpose(0, 1),  # [T, K, Dv]
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return output.unsqueeze(0), None  # [1, T, H, Dv]


def _unsupported(module: torch.nn.Module, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(module).__name__} asks for {what}, which paged attention does not compute; this model cannot be served"
    )
