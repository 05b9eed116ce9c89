"""GGUF conversion: weights equal, tokenizer restored, and refusals where a folder would not be the model."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from starter_models import smollm2_folder
from tiny_gguf import HEAD_DIM, HEADS, PIECES, THETA, gguf_tensors, tiny_llama, write_gguf
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from penstock.scheduler.errors import ModelLoadError, UnsupportedModelError
from penstock.scheduler.launch import convert_gguf as convert_in_process
from penstock.scheduler.models.convert_gguf import GgufFile, convert, main, scaled_rotary


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    return gguf_tensors(model)


def test_float32_weights_stay_equal(model, tensors, tmp_path):
    convert(write_gguf(tmp_path / "tiny.gguf", tensors), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert written.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(written[name], weight), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["max_position_embeddings"]) == ("float32", 128)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 2]  # end of text and end of turn
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.gguf"]  # nothing half-made is left


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.bfloat16), ("Q4_1", torch.bfloat16)],
)
def test_weights_keep_what_the_file_has(model, tensors, tmp_path, kind, dtype):
    quantization = gguf.GGMLQuantizationType[kind]
    convert(write_gguf(tmp_path / "tiny.gguf", tensors, quantization=quantization), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    weight = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    stored = gguf.quants.dequantize(gguf.quants.quantize(weight, quantization), quantization)
    assert written.dtype == dtype
    assert torch.equal(written, torch.from_numpy(stored).to(dtype))


def test_missing_weights_are_not_made_up(tensors, tmp_path):
    path = write_gguf(
        tmp_path / "tiny.gguf", {name: w for name, w in tensors.items() if name != "blk.0.ffn_down.weight"}
    )
    with pytest.raises(ModelLoadError, match=r"lacks the weights model\.layers\.0\.mlp\.down_proj\.weight"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["1", "2", "1", "2", "1"]),
        ("gpt-2", ["12", "12", "1"]),
        ("qwen2", ["1", "2", "1", "2", "1"]),
        ("llama-bpe", ["<|begin|>", "12", "1", "2", "1"]),  # three digits at a time, after the begin token
    ],
)
def test_digits_split_as_the_tokenizer_kind_says(tensors, tmp_path, pre, pieces):
    convert(write_gguf(tmp_path / "tiny.gguf", tensors, pre=pre), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("12121").tokens == pieces
    text = "hello <|eot|> 12 Ünï\n\n  x"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False).removeprefix("<|begin|>") == text


@pytest.mark.parametrize("pre", ["no-such-kind", "default", None])
def test_unknown_tokenizer_kind_is_refused_by_name(tensors, tmp_path, capsys, pre):
    path = write_gguf(tmp_path / "tiny.gguf", tensors, pre=pre)
    assert main([str(path), str(tmp_path / "out")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert (pre or "missing") in last and "tokenizer.ggml.pre" in last
    assert not (tmp_path / "out").exists()


def test_other_tokenizer_families_are_refused(tensors, tmp_path):
    with pytest.raises(UnsupportedModelError, match="family 't5'"):
        convert(write_gguf(tmp_path / "tiny.gguf", tensors, family="t5"), tmp_path / "out")


def sentence_pieces(text: str) -> list[str]:
    """SentencePiece BPE: of all neighbours that make a piece, the best one merges, the leftmost of equals."""
    symbols = list(text.replace(" ", "\u2581"))
    while pairs := [
        (PIECES.index(a + b), at)
        for at, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))
        if a + b in PIECES
    ]:
        _, at = min(pairs)
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    return [
        piece
        for symbol in symbols
        for piece in ([symbol] if symbol in PIECES else [f"<0x{byte:02X}>" for byte in symbol.encode()])
    ]


@pytest.mark.parametrize("add_prefix", [True, False])
def test_sentencepiece_vocabularies_keep_their_pieces(tmp_path, add_prefix):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    model = tiny_llama()
    model.resize_token_embeddings(len(tokens), mean_resizing=False)
    path = write_gguf(tmp_path / "tiny.gguf", gguf_tensors(model), family="llama", pieces=(tokens, add_prefix))
    convert(path, tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    front = " " if add_prefix else ""
    for text in ("abcd", " abcd", "a  b   cd ", "xab\nÜ 漢x", "aab abc bcd  ", ""):
        encoded = tokenizer.encode(text)
        assert encoded.tokens == ["<s>", *(sentence_pieces(front + text) if text else [])]
        assert tokenizer.decode(encoded.ids) == text
    after_special = tokenizer.encode("ab</s>ab").tokens
    assert after_special == ["<s>", *sentence_pieces(front + "ab"), "</s>", *sentence_pieces(front + "ab")]


def test_a_tensor_the_model_would_ignore_is_refused(tensors, tmp_path):
    extra = {**tensors, "blk.0.attn_q.bias": np.ones(HEADS * HEAD_DIM, dtype=np.float32)}
    with pytest.raises(UnsupportedModelError, match="weights, but LlamaForCausalLM has"):
        convert(write_gguf(tmp_path / "tiny.gguf", extra), tmp_path / "out")


def test_rotary_scaling_comes_back(tensors, tmp_path):
    yarn = write_gguf(tmp_path / "yarn.gguf", tensors, scaling=(gguf.RopeScalingType.YARN, 4.0))
    convert(yarn, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": THETA}
    assert config["rope_parameters"] == expected
    longrope = write_gguf(tmp_path / "long.gguf", tensors, scaling=(gguf.RopeScalingType.LONGROPE, 4.0))
    with pytest.raises(UnsupportedModelError, match="longrope"):
        scaled_rotary(GgufFile(longrope))


def test_llama3_rotary_is_recognised_by_its_divisors(tensors, tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    parameters |= {"original_max_position_embeddings": 8192, "rope_theta": THETA}
    config = LlamaConfig(hidden_size=512, num_attention_heads=8, head_dim=64, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = THETA ** (-torch.arange(0, 64, 2) / 64)
    divisors = (plain / scaled).numpy()
    path = write_gguf(tmp_path / "tiny.gguf", {**tensors, "rope_freqs.weight": divisors})
    expected = {name: value for name, value in parameters.items() if name != "rope_theta"}
    assert scaled_rotary(GgufFile(path)) == pytest.approx(expected)
    path = write_gguf(tmp_path / "odd.gguf", {**tensors, "rope_freqs.weight": divisors[::-1].copy()})
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        scaled_rotary(GgufFile(path))


def test_a_refusal_reaches_the_front_in_one_line(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match=r"broken\.gguf cannot be read as a GGUF file"):
        convert_in_process(tmp_path / "broken.gguf", tmp_path / "out")
    with pytest.raises(ModelLoadError, match=r"missing\.gguf is not a file"):
        convert(tmp_path / "missing.gguf", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelLoadError, match="exists already"):
        convert(tmp_path / "broken.gguf", tmp_path / "out")


def test_smollm2_tokenises_digit_by_digit():
    tokenizer = Tokenizer.from_file(str(smollm2_folder() / "tokenizer.json"))
    encoded = tokenizer.encode("In 1984, 12+30 is 42.")
    assert encoded.tokens == [
        "In",
        "Ġ",
        "1",
        "9",
        "8",
        "4",
        ",",
        "Ġ",
        "1",
        "2",
        "+",
        "3",
        "0",
        "Ġis",
        "Ġ",
        "4",
        "2",
        ".",
    ]
    # As the original tokenizer has them.
    assert tokenizer.encode("Hello world! 123").ids == [19556, 905, 17, 216, 33, 34, 35]
    assert tokenizer.encode("Café déjà vu.").ids == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    assert tokenizer.encode("  multiple   spaces").ids == [216, 2701, 256, 5600]
