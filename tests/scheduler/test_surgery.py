"""Every surgical step computes what it replaces."""

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, VOCAB_SIZE, make_tiny
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from penstock.scheduler.models.linear import FusedPart, PackedLinear, fuse
from penstock.scheduler.models.rms_norm import RMSNorm, fast_rms_norm
from penstock.scheduler.models.surgery import speed_up


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def logits(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.randint(VOCAB_SIZE, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits.float()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_operated_model_equals_plain_one(family: str, tmp_path: Path) -> None:
    model = plain(make_tiny(family, tmp_path))
    expected = logits(model)
    speed_up(model, lambda done: None)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bfloat16_stays_within_rounding(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path)
    exact = logits(plain(folder))
    model = plain(folder, torch.bfloat16)
    error_before = (logits(model) - exact).std()
    speed_up(model, lambda done: None)
    assert (logits(model) - exact).std() < 1.5 * error_before


@pytest.mark.parametrize(
    ("family", "fused", "packed", "norms"),
    [
        ("llama", 5 * 3, 4 * 3 + 1, 2 * 3 + 1),  # q k v gate up; qkv gate_up o down, lm_head; two a layer and the last
        ("qwen3", 5 * 3, 4 * 3 + 1, 4 * 3 + 1),
        ("gemma2", 5 * 4, 4 * 4 + 1, 4 * 4 + 1),
        ("phi3", 0, 4 * 3 + 1, 2 * 3 + 1),  # fused by its authors
        ("gpt2", 0, 1, 0),  # Conv1D is no Linear
    ],
)
def test_what_is_replaced(family: str, fused: int, packed: int, norms: int, tmp_path: Path) -> None:
    model = plain(make_tiny(family, tmp_path))
    done: list[float] = []
    speed_up(model, done.append)
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(FusedPart), kinds.count(PackedLinear), kinds.count(RMSNorm)) == (fused, packed, norms)
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_embedding_survives_a_tied_head(tmp_path: Path) -> None:
    model = plain(make_tiny("llama", tmp_path))
    embedding = model.get_input_embeddings().weight.clone()
    speed_up(model, lambda done: None)
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_subclass_of_linear_stays() -> None:
    class Scaled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 4))
    model[1].register_forward_hook(lambda module, args, output: output + 1)
    speed_up(model, lambda done: None)
    assert [type(child) for child in model] == [Scaled, nn.Linear]


class TestPackedLinear:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("num_rows", [1, 3, 64, 200])
    def test_equals_linear(self, dtype: torch.dtype, bias: bool, num_rows: int) -> None:
        torch.manual_seed(0)
        linear = nn.Linear(48, 80, bias=bias, dtype=dtype).requires_grad_(False)
        inputs = torch.randn(1, num_rows, 48, dtype=dtype)
        packed = PackedLinear(linear.weight, linear.bias)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(packed(inputs), linear(inputs), rtol=tolerance, atol=tolerance)

    def test_strided_input(self) -> None:
        torch.manual_seed(0)
        linear = nn.Linear(16, 8).requires_grad_(False)
        inputs = torch.randn(1, 5, 48)[..., 16:32]
        torch.testing.assert_close(PackedLinear(linear.weight, linear.bias)(inputs), linear(inputs))

    def test_dtype_and_shape_can_be_read(self) -> None:
        packed = PackedLinear(torch.randn(8, 16, dtype=torch.bfloat16), None)
        assert (packed.weight.dtype, tuple(packed.weight.shape)) == (torch.bfloat16, (8, 16))


class TestFuse:
    @pytest.fixture
    def layers(self) -> list[nn.Linear]:
        torch.manual_seed(0)
        return [nn.Linear(16, size).requires_grad_(False) for size in (12, 4, 8)]

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 0, 1), (1,)])
    def test_any_order_of_calls(self, layers: list[nn.Linear], packed: bool, order: tuple[int, ...]) -> None:
        parts = fuse(layers, packed=packed)
        for _ in range(2):
            inputs = torch.randn(1, 3, 16)
            for index in order:
                torch.testing.assert_close(parts[index](inputs), layers[index](inputs))

    def test_different_inputs_in_turn(self, layers: list[nn.Linear]) -> None:
        parts = fuse(layers, packed=True)
        first, second = torch.randn(2, 16), torch.randn(2, 16)
        for inputs in (first, second, first):
            for index in (0, 1):
                torch.testing.assert_close(parts[index](inputs), layers[index](inputs))

    def test_input_changed_in_place_between_passes(self, layers: list[nn.Linear]) -> None:
        parts = fuse(layers, packed=True)
        inputs = torch.randn(2, 16)
        for _ in range(2):
            for part, layer in zip(parts, layers, strict=True):
                torch.testing.assert_close(part(inputs), layer(inputs))
            inputs.mul_(3)

    def test_one_product_for_all(self, layers: list[nn.Linear], monkeypatch: pytest.MonkeyPatch) -> None:
        parts = fuse(layers, packed=True)
        calls: list[torch.Tensor] = []
        forward = PackedLinear.forward
        monkeypatch.setattr(PackedLinear, "forward", lambda self, x: calls.append(x) or forward(self, x))
        inputs = torch.randn(2, 16)
        for part in parts:
            part(inputs)
        assert len(calls) == 1


class TestRmsNorm:
    class LlamaRMSNorm(nn.Module):
        def __init__(self, size: int, eps: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(size))
            self.variance_epsilon = eps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    class CenteredRMSNorm(LlamaRMSNorm):
        """Subtracts the mean: not an RMS norm, whatever its name says."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(-1, keepdim=True))

    class OutsideRMSNorm(LlamaRMSNorm):
        """Adds epsilon outside of the root."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)

    def test_same_formula_matches(self) -> None:
        module = self.LlamaRMSNorm(24, 1e-5)
        norm = fast_rms_norm(module)
        assert norm is not None
        inputs = torch.randn(2, 5, 24)
        torch.testing.assert_close(norm(inputs), module(inputs))

    @pytest.mark.parametrize("kind", [CenteredRMSNorm, OutsideRMSNorm])
    def test_other_formula_stays(self, kind: type[LlamaRMSNorm]) -> None:
        assert fast_rms_norm(kind(24, 1e-5)) is None

    def test_other_module_stays(self) -> None:
        assert fast_rms_norm(nn.LayerNorm(24)) is None
