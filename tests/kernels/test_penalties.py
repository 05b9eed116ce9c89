"""Logit changes against loops that do one entry at a time."""

import pytest
import torch

from penstock.kernels.penalties import add_bias, forbid, penalize


def entries(generator, num_rows, vocab_size, number):
    pairs = torch.randperm(num_rows * vocab_size, generator=generator)[:number]
    return pairs // vocab_size, pairs % vocab_size


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def test_bias_is_added_where_it_belongs(generator):
    logits = torch.randn(5, 33, generator=generator)
    rows, token_ids = entries(generator, 5, 33, 40)
    bias = torch.randn(40, generator=generator) * 100
    expected = logits.clone()
    for row, token_id, value in zip(rows.tolist(), token_ids.tolist(), bias.tolist(), strict=True):
        expected[row, token_id] += value
    add_bias(logits, rows, token_ids, bias)
    assert torch.allclose(logits, expected)


def test_forbidden_tokens_become_impossible(generator):
    logits = torch.randn(4, 20, generator=generator)
    before = logits.clone()
    rows, token_ids = entries(generator, 4, 20, 11)
    forbid(logits, rows, token_ids)
    assert (logits == -torch.inf).sum() == 11
    assert (logits[rows, token_ids] == -torch.inf).all()
    untouched = logits != -torch.inf
    assert torch.equal(logits[untouched], before[untouched])


def test_penalties_match_the_definition(generator):
    logits = torch.randn(6, 50, generator=generator) * 5
    rows, token_ids = entries(generator, 6, 50, 120)
    counts = torch.randint(0, 4, (120,), generator=generator).float()
    repetition = (0.5 + torch.rand(6, generator=generator))[rows]
    presence = torch.randn(6, generator=generator)[rows]
    frequency = torch.randn(6, generator=generator)[rows]
    expected = logits.clone()
    for n in range(120):
        value = expected[rows[n], token_ids[n]].item()
        value = value / repetition[n].item() if value > 0 else value * repetition[n].item()
        value -= frequency[n].item() * counts[n].item()
        if counts[n] > 0:
            value -= presence[n].item()
        expected[rows[n], token_ids[n]] = value
    penalize(logits, rows, token_ids, counts, repetition, presence, frequency)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_impossible_tokens_stay_impossible():
    logits = torch.tensor([[-torch.inf, 1.0]])
    penalize(logits, *(torch.tensor([0]),) * 2, *(torch.tensor([value]) for value in (3.0, 2.0, -5.0, -5.0)))
    assert logits.tolist() == [[-torch.inf, 1.0]]
