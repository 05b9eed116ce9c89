"""The sampling operations against a slow reference in double precision, at their edges, and by distribution."""

import math

import numpy as np
import pytest
import torch

from penstock.kernels.sampling import MIN_LOGPROB, keyed_uniforms, top_logprobs
from penstock.kernels.sampling_torch import FilteredDraw, argmax, draw, draw_filtered, sanitize

LARGEST = torch.finfo(torch.float32).max


def reference_kept(logits, temperature, top_k, top_p, min_p):
    """Ids that survive the filters, and the probabilities of all tokens: one row, plain Python."""
    largest = max(logits)
    weights = [math.exp((value - largest) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))[:top_k]
    mass, running, kept = sum(weights[index] for index in order), 0.0, []
    for index in order:
        if kept and (running >= top_p * mass or weights[index] < min_p):
            break
        kept.append(index)
        running += weights[index]
    return sorted(kept), weights


def reference_draw(logits, temperature, uniform, top_k, top_p, min_p):
    kept, weights = reference_kept(logits, temperature, top_k, top_p, min_p)
    target, running = uniform * sum(weights[index] for index in kept), 0.0
    for index in kept:
        running += weights[index]
        if running > target:
            return index
    return kept[-1]


def filtered(logits, uniforms, num_candidates=None, *, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    num_rows, vocab_size = logits.shape

    def rows(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(num_rows)

    params = FilteredDraw(
        rows(temperature, torch.float32),
        rows(uniforms, torch.float64),
        rows(vocab_size if top_k is None else top_k, torch.int64),
        rows(top_p, torch.float64),
        rows(min_p, torch.float32),
    )
    return draw_filtered(logits, params, num_candidates or vocab_size)


def test_uniforms_are_the_published_generator_and_depend_on_nothing_else():
    def mix(state):
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    step = 0x9E3779B97F4A7C15
    seeds, positions = np.array([0, 1, -1, 2**63 - 1, -(2**63)]), np.array([0, 1, 77, 100_000, 3])
    expected = [
        (mix((mix((int(s) + step) % 2**64) + int(p) * step) % 2**64) >> 11) * 2.0**-53
        for s, p in zip(seeds, positions, strict=True)
    ]
    assert keyed_uniforms(seeds, positions).tolist() == expected
    assert mix(step) == 0xE220A8397B1DCDAF  # the generator's known first output for seed 0
    assert keyed_uniforms(seeds[3:4], positions[3:4]).tolist() == expected[3:4]


def test_uniforms_are_uniform_along_seeds_and_positions():
    many = np.arange(20_000)
    for values in (keyed_uniforms(many, np.full(20_000, 5)), keyed_uniforms(np.full(20_000, 5), many)):
        counts, _ = np.histogram(values, bins=20, range=(0, 1))
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


def test_sanitize_gives_a_copy_without_surprises():
    raw = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]], dtype=torch.bfloat16)
    clean = sanitize(raw)
    assert clean.tolist() == [[-math.inf, LARGEST, -math.inf, 1.0]]
    single = torch.zeros(1, 2)
    sanitize(single)[0, 0] = 9
    assert single[0, 0] == 0


@pytest.mark.parametrize(
    ("odd", "clean"),
    [
        ([math.nan, 1.0, -2.0], [-math.inf, 1.0, -2.0]),
        ([math.inf, 1.0, -2.0], [LARGEST, 1.0, -2.0]),
        ([math.inf, -math.inf, -2.0], [LARGEST, -math.inf, -2.0]),
        ([-math.inf] * 3, [-math.inf] * 3),
        ([math.nan] * 3, [-math.inf] * 3),
        ([LARGEST, LARGEST, -2.0], [LARGEST, LARGEST, -2.0]),  # finite, although their sum is not
        ([0.5, 1.0, -2.0], [0.5, 1.0, -2.0]),
    ],
)
def test_sanitize_finds_one_odd_row_among_others_and_keeps_its_input(odd, clean):
    raw = torch.tensor([[0.1, 0.2, 0.3], odd, [3.0, 2.0, 1.0]])
    before = raw.clone()
    result = sanitize(raw)
    assert torch.equal(result, torch.tensor([[0.1, 0.2, 0.3], clean, [3.0, 2.0, 1.0]]))
    result.fill_(7.0)
    assert torch.equal(raw.nan_to_num(nan=9.0), before.nan_to_num(nan=9.0))


def test_argmax_takes_the_first_of_equals():
    assert argmax(torch.tensor([[1.0, 3.0, 3.0], [-math.inf] * 3])).tolist() == [1, 0]


@pytest.mark.parametrize("vocab_size", [1, 5, 256, 257, 1000])
def test_whole_vocabulary_draw_matches_the_reference(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(40, vocab_size, generator=generator) * 3
    temperature = 0.3 + torch.rand(40, generator=generator) * 2
    min_p = torch.rand(40, generator=generator) * 0.2
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    drawn = draw(logits, temperature, uniforms, min_p).tolist()
    for row in range(40):
        given = (logits[row].tolist(), temperature[row].item(), uniforms[row].item())
        assert drawn[row] == reference_draw(*given, vocab_size, 1.0, min_p[row].item())


@pytest.mark.parametrize("num_candidates", [8, 64, 300])
def test_filtered_draw_matches_the_reference_wherever_it_is_settled(num_candidates):
    generator = torch.Generator().manual_seed(num_candidates)
    # Halves: many equal logits, as bfloat16 makes them.
    logits = (torch.randn(200, 300, generator=generator) * 6).round() / 2
    temperature = 0.3 + torch.rand(200, generator=generator)
    top_k = torch.randint(1, 400, (200,), generator=generator)
    top_p = torch.rand(200, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    min_p = torch.rand(200, generator=generator) * 0.1
    min_p[::2] = 0
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    params = FilteredDraw(temperature, uniforms, top_k, top_p, min_p)
    drawn, settled = draw_filtered(logits, params, num_candidates)
    assert settled.any() and (settled.all() or num_candidates < 300)
    for row in torch.nonzero(settled).squeeze(1).tolist():
        given = [logits[row].tolist(), *(values[row].item() for values in params)]
        assert drawn[row] == reference_draw(*given), row


def test_candidates_that_may_not_suffice_are_not_settled():
    ties = torch.zeros(1, 300)
    assert filtered(ties, 0.5, 8, top_k=4)[1].tolist() == [False]  # other zeros may have lower ids than the eight
    assert filtered(ties, 0.5, top_k=4)[0].tolist() == [2]  # ids 0 to 3
    falling = -torch.arange(300.0).unsqueeze(0)
    assert filtered(falling, 0.5, 8, top_k=7)[1].tolist() == [True]
    assert filtered(falling, 0.5, 8, top_k=9)[1].tolist() == [False]
    assert filtered(falling, 0.5, 8, top_p=0.9)[1].tolist() == [True]
    assert filtered(falling / 100, 0.5, 8, top_p=0.9)[1].tolist() == [False]


def test_extremes():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(64, 500, generator=generator)
    uniforms = torch.rand(64, generator=generator, dtype=torch.float64)
    best = logits.argmax(1).tolist()
    for only_best in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-30}):
        tokens, _ = filtered(logits, uniforms, **only_best)
        assert tokens.tolist() == best, only_best
    assert draw(logits, torch.full((64,), 1e-30), uniforms).tolist() == best
    hot = draw(logits, torch.full((64,), 1e30), uniforms)  # all tokens equally likely
    assert torch.equal(hot, (uniforms * 500).long())
    low, high = torch.zeros(64, dtype=torch.float64), torch.full((64,), 1 - 2**-53, dtype=torch.float64)
    assert draw(logits, torch.ones(64), low).tolist() == [0] * 64
    assert draw(logits, torch.ones(64), high).tolist() == [499] * 64


def test_a_filtered_token_is_never_drawn():
    logits = torch.full((2, 1000), -math.inf)
    logits[:, [256, 700]] = 0.0  # the only two; one opens a chunk
    for uniform in (0.0, 0.49999999, 0.5, 1 - 2**-53):
        uniforms = torch.full((2,), uniform, dtype=torch.float64)
        expected = 256 if uniform < 0.5 else 700
        assert draw(logits, torch.ones(2), uniforms).tolist() == [expected] * 2
        assert filtered(logits, uniform, 16, top_p=0.99)[0].tolist() == [expected] * 2
    nothing = torch.full((1, 1000), -math.inf)
    assert draw(nothing, torch.ones(1), torch.tensor([0.7], dtype=torch.float64)).tolist() == [0]
    assert filtered(nothing, 0.7, top_p=0.5)[0].tolist() == [0]


def test_unlikely_tokens_at_the_end_of_a_large_vocabulary_are_not_lost():
    # A float32 running sum stops at 1 here: adding 2e-9 to it changes nothing.
    logits = torch.full((1, 150_000), -20.0)
    logits[0, 0] = 0.0
    weights = torch.exp(logits[0].double())
    for token_id in (1000, 75_000, 149_000):
        middle = (weights[:token_id].sum() + weights[token_id] / 2) / weights.sum()
        (drawn,) = draw(logits, torch.ones(1), middle.reshape(1)).tolist()
        assert abs(drawn - token_id) < 100  # 1e-7 of the total are 50 such tokens


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"temperature": 0.5}])
def test_draws_follow_the_distribution(settings):
    row = torch.tensor([1.0, 0.5, 0.0, 2.0, -1.0, 1.5])
    number = 12_000
    uniforms = torch.from_numpy(keyed_uniforms(np.arange(number), np.arange(number) % 50))
    tokens, _ = filtered(row.expand(number, -1), uniforms, **settings)
    defaults = {"temperature": 1.0, "top_k": 6, "top_p": 1.0, "min_p": 0.0}
    kept, weights = reference_kept(row.tolist(), *(defaults | settings).values())
    expected = np.array([weights[index] for index in kept]) / sum(weights[index] for index in kept) * number
    counts = np.bincount(tokens.numpy(), minlength=6)
    assert counts[kept].sum() == number
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_logprobs_match_log_softmax():
    logits = torch.randn(7, 400, generator=torch.Generator().manual_seed(1)) * 4
    token_ids = torch.arange(7) * 11
    chosen, ids, values = top_logprobs(logits, token_ids, 5)
    expected = logits.double().log_softmax(1)
    assert torch.allclose(chosen.double(), expected[torch.arange(7), token_ids], atol=1e-5)
    best = expected.sort(1, descending=True)
    assert torch.equal(ids, best.indices[:, :5])
    assert torch.allclose(values.double(), best.values[:, :5], atol=1e-5)
    assert [part.shape for part in top_logprobs(logits, token_ids, 0)] == [(7,), (7, 0), (7, 0)]


def test_logprobs_are_numbers_whatever_the_logits():
    logits = torch.tensor([[-math.inf] * 3, [0.0, -math.inf, -math.inf]])
    chosen, _, values = top_logprobs(logits, torch.tensor([0, 2]), 2)
    assert chosen.tolist() == [MIN_LOGPROB] * 2
    assert values.tolist() == [[MIN_LOGPROB] * 2, [0.0, MIN_LOGPROB]]
