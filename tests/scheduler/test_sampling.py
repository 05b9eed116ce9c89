"""The sampler: order of operations, every row by its own parameters, and the same token alone as in any batch."""

import math

import pytest
import torch

from penstock.kernels.sampling import keyed_uniforms
from penstock.scheduler.messages import TokenLogprobs
from penstock.scheduler.request import Request
from penstock.scheduler.results import LaunchedBatch
from penstock.scheduler.sampling import Sampler
from penstock.scheduler.sampling_params import SamplingParams

VOCAB = 5000
EOS = frozenset({2, 7})
CPU = torch.device("cpu")


def make_request(prompt=(10, 11, 12), output=(), *, seed=0, max_tokens=50, **params) -> Request:
    return Request(
        request_id="r",
        model="m",
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed, **params),
        arrival_time=0.0,
        token_ids=[*prompt, *output],
    )


def sample(logits, *requests, vocab_size=VOCAB):
    return collect(Sampler(vocab_size, EOS, CPU), logits, *requests)


def collect(sampler, logits, *requests):
    return LaunchedBatch(CPU, sampler.sample(logits, list(requests))).collect()


def tokens(*arguments, **options):
    return [sampled.token_id for sampled in sample(*arguments, **options)]


@pytest.fixture
def logits():
    return torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(5)) * 3


def changed_logits(row: torch.Tensor, request: Request) -> list[float]:
    """Logits before temperature by the definitions, one token at a time."""
    params, values = request.sampling, row.double().tolist()
    for token_id, bias in params.logit_bias.items():
        values[token_id] += bias
    output = request.token_ids[len(request.prompt_token_ids) :]
    for token_id in set(request.token_ids):
        penalty = params.repetition_penalty
        values[token_id] = values[token_id] / penalty if values[token_id] > 0 else values[token_id] * penalty
    for token_id in set(output):
        values[token_id] -= params.presence_penalty + params.frequency_penalty * output.count(token_id)
    if len(output) < params.min_tokens:
        for token_id in {*EOS, *params.stop_token_ids}:
            values[token_id] = -math.inf
    return values


def expected_token(row: torch.Tensor, request: Request) -> int:
    params, values = request.sampling, changed_logits(row, request)
    largest = max(values)
    if params.temperature == 0:
        return values.index(largest)
    weights = [math.exp((value - largest) / params.temperature) for value in values]
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))[: params.top_k or None]
    mass, running, kept = sum(weights[index] for index in order), 0.0, []
    for index in order:
        if kept and (running >= params.top_p * mass or weights[index] < params.min_p):
            break
        kept.append(index)
        running += weights[index]
    uniform = keyed_uniforms(*(torch.tensor([value]).numpy() for value in (params.seed, request.num_tokens)))[0]
    target, running = uniform * running, 0.0
    for index in sorted(kept):
        running += weights[index]
        if running > target:
            return index
    raise AssertionError("no token")


MIXED = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.7, "frequency_penalty": 1.0, "presence_penalty": -0.5},
    {"seed": 1},
    {"seed": 2, "temperature": 1.7},
    {"seed": 3, "top_k": 5},
    {"seed": -4, "top_p": 0.8, "temperature": 0.6},
    {"seed": 5, "top_p": 0.97, "temperature": 1.5},  # hundreds of tokens: more than the first candidates
    {"seed": 6, "min_p": 0.02},
    {"seed": 7, "top_k": 600, "top_p": 0.9, "min_p": 0.001, "presence_penalty": 2.0},
    {"seed": 8, "logit_bias": {4321: 50.0}, "temperature": 2.0},
    {"seed": 9, "logit_bias": {7: 100.0, 2: 90.0, 100: 80.0}, "min_tokens": 3, "stop_token_ids": (100,)},
    {"seed": 10, "top_k": 4900, "repetition_penalty": 0.5},
]


def mixed_requests():
    return [make_request(output=(5, 6, 5)[: index % 3], **params) for index, params in enumerate(MIXED)]


def test_every_row_follows_its_own_parameters_in_order(logits):
    requests = mixed_requests()
    assert tokens(logits, *requests) == [
        expected_token(row, request) for row, request in zip(logits, requests, strict=True)
    ]


def test_a_row_gets_the_same_token_alone_and_in_any_batch(logits):
    together = tokens(logits, *mixed_requests())
    backwards = tokens(logits.flip(0), *reversed(mixed_requests()))
    assert backwards == together[::-1]
    for index, request in enumerate(mixed_requests()):
        assert tokens(logits[index : index + 1], request) == [together[index]]


def test_positions_and_seeds_give_different_tokens(logits):
    row = logits[:1].expand(200, -1)
    by_position = tokens(row, *(make_request(output=[1] * number) for number in range(200)))
    by_seed = tokens(row, *(make_request(seed=seed) for seed in range(200)))
    assert len(set(by_position)) > 20 and len(set(by_seed)) > 20


def test_bias_comes_before_penalties_and_penalties_before_min_tokens():
    row = torch.zeros(1, 50)
    row[0, 30], row[0, 31] = 2.0, 1.5
    request = {"prompt": (30, 1), "temperature": 0.0, "repetition_penalty": 2.0}
    # (2 + 2) / 2 loses to 1.5 + 1; the other way round, 2 / 2 + 2 would win.
    assert tokens(row, make_request(**request, logit_bias={30: 2.0, 31: 1.0}), vocab_size=50) == [31]
    biased_end = make_request(temperature=0.0, logit_bias={2: 100.0}, min_tokens=1)
    assert tokens(row, biased_end, vocab_size=50) == [30]
    biased_end.token_ids.append(30)
    assert tokens(row, biased_end, vocab_size=50) == [2]  # one output token is enough


def test_prompt_tokens_count_for_repetition_only():
    row = torch.zeros(1, 50)
    row[0, 10], row[0, 20] = 2.0, 1.9
    presence = {"presence_penalty": 2.0, "frequency_penalty": 2.0}
    assert tokens(row, make_request(temperature=0.0, **presence), vocab_size=50) == [10]
    assert tokens(row, make_request(temperature=0.0, repetition_penalty=1.2), vocab_size=50) == [20]
    assert tokens(row, make_request(output=[10], temperature=0.0, **presence), vocab_size=50) == [20]


def test_counts_follow_the_tokens_through_growth_and_preemption(logits):
    params = {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2}
    request = make_request(prompt=range(100, 400), max_tokens=2000, **params)
    sampler = Sampler(VOCAB, EOS, CPU)
    for step in range(40):
        row = logits[step % 12]
        (sampled,) = collect(sampler, row.unsqueeze(0), request)
        assert sampled.token_id == expected_token(row, request)
        request.token_ids += [sampled.token_id, (step * 37) % VOCAB, 5]  # more than one token between two calls
    grown = request.sampler_state
    request.sampler_state = None  # as after a restart
    again = collect(sampler, logits[:1], request)
    assert again == collect(
        sampler, logits[:1], make_request(request.prompt_token_ids, request.token_ids[300:], **params)
    )
    assert grown is not request.sampler_state
    del request.token_ids[320:]
    assert tokens(logits[:1], request) == [expected_token(logits[0], request)]


def test_nan_harms_only_its_own_entries(logits):
    logits[1, :] = math.nan
    logits[2, 100:200] = math.nan
    requests = [make_request(temperature=0.0, logprobs=2) if row % 2 else make_request(seed=row) for row in range(12)]
    chosen = sample(logits, *requests)
    assert chosen[1].token_id == 0  # nothing is possible: the defined answer
    assert chosen[1].logprobs is not None and math.isfinite(chosen[1].logprobs.logprob)
    assert not 100 <= chosen[2].token_id < 200
    for row in (0, *range(3, 12)):
        assert chosen[row].token_id == expected_token(logits[row], requests[row])
    assert [sampled.token_id for sampled in sample(logits, *requests)] == [sampled.token_id for sampled in chosen]


def test_logprobs_are_of_the_unmodified_distribution_and_only_for_those_who_asked(logits):
    asked = make_request(temperature=0.0, logit_bias={42: 100.0}, repetition_penalty=3.0, logprobs=3)
    plain, zero = make_request(seed=3, top_k=2), make_request(seed=4, logprobs=0)
    first, second, third = sample(logits[:3], asked, plain, zero)
    expected = logits[:3].double().log_softmax(1)
    best = expected.sort(1, descending=True)
    assert first.token_id == 42 and second.logprobs is None
    assert first.logprobs == TokenLogprobs(
        logprob=pytest.approx(expected[0, 42].item(), abs=1e-4),
        top_token_ids=best.indices[0, :3].tolist(),
        top_logprobs=pytest.approx(best.values[0, :3].tolist(), abs=1e-4),
    )
    assert third.logprobs == TokenLogprobs(pytest.approx(expected[2, third.token_id].item(), abs=1e-4), [], [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_float_dtype_and_a_padded_vocabulary(logits, dtype):
    padded = torch.cat((logits, torch.full((12, 24), 1000.0)), dim=1).to(dtype)
    kept = padded.clone()
    requests = mixed_requests()
    expected = [expected_token(row[:VOCAB].float(), request) for row, request in zip(padded, requests, strict=True)]
    assert tokens(padded, *requests) == expected
    assert torch.equal(padded, kept)  # the caller's logits are not ours to change


def test_extreme_parameters(logits):
    best = logits.argmax(1).tolist()
    for params in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-9}, {"temperature": 1e-300}):
        assert tokens(logits, *(make_request(seed=row, **params) for row in range(12))) == best, params
    banned = [make_request(temperature=0.0, logit_bias={token_id: -1e30}) for token_id in best]
    assert all(a != b for a, b in zip(tokens(logits, *banned), best, strict=True))
    only = [make_request(seed=row, temperature=5.0, logit_bias={1234: 1e6}) for row in range(12)]
    assert tokens(logits, *only) == [1234] * 12
    outside = make_request(temperature=0.0, logit_bias={VOCAB: 100.0, -1: 100.0}, stop_token_ids=(VOCAB,), min_tokens=1)
    assert tokens(logits[:1], outside) == best[:1]


def test_no_rows_no_tokens():
    assert sample(torch.empty(0, VOCAB)) == []
