"""Counts on the device: what is added is what counting anew finds, whoever needs a row."""

import random

import torch

from penstock.kernels.change_logits import IN_OUTPUT, IN_PROMPT
from penstock.scheduler.request import Request, RequestStatus
from penstock.scheduler.sampling_params import SamplingParams
from penstock.scheduler.token_counts import TokenCounts

VOCAB = 50


def make_request(prompt: list[int], penalty: float = 0.5) -> Request:
    sampling = SamplingParams(max_tokens=100, seed=0, presence_penalty=penalty)
    request = Request("r", "m", prompt, sampling, 0.0, token_ids=list(prompt))
    request.status = RequestStatus.RUNNING
    return request


def expected_row(prompt: list[int], output: list[int]) -> list[int]:
    return [IN_PROMPT * (token in prompt) + IN_OUTPUT * output.count(token) for token in range(VOCAB)]


def test_a_row_follows_tokens_that_the_host_does_not_know() -> None:
    counts = TokenCounts(VOCAB, torch.device("cpu"))
    plain, request = make_request([1, 2], 0.0), make_request([3, 3, 4, VOCAB])
    outputs: list[int] = []
    for token in (3, 9, 9):
        rows = counts.rows_of([plain, request])
        assert rows[0] == -1
        assert counts.table[rows[1]].tolist() == expected_row([3, 4], outputs)
        counts.add([plain, request], torch.tensor([7, token]))
        request.num_pending_tokens += 1  # the host has not got it
        outputs.append(token)
    assert counts.rows_of([plain]).tolist() == [-1]


def test_requests_that_come_and_go_share_few_rows() -> None:
    rng = random.Random(0)
    counts = TokenCounts(VOCAB, torch.device("cpu"))
    requests = [make_request([rng.randrange(VOCAB) for _ in range(5)]) for _ in range(6)]
    for step in range(200):
        request = rng.choice(requests)
        if rng.random() < 0.2:  # it ends, and another one starts
            request.status = RequestStatus.FINISHED
            requests[requests.index(request)] = make_request([rng.randrange(VOCAB) for _ in range(5)])
        elif rng.random() < 0.2:  # preempted: its row may be somebody else's for a while
            request.status = RequestStatus.WAITING
        chosen = rng.sample(requests, 3)
        for each in chosen:
            each.status = RequestStatus.RUNNING
        rows = counts.rows_of(chosen)
        assert len(set(rows.tolist())) == 3
        for row, each in zip(rows, chosen, strict=True):
            assert counts.table[row].tolist() == expected_row(each.prompt_token_ids, each.token_ids[5:]), step
        tokens = [rng.randrange(VOCAB) for _ in chosen]
        counts.add(chosen, torch.tensor(tokens))
        for each, token in zip(chosen, tokens, strict=True):
            each.token_ids.append(token)
    assert len(counts.table) == 8
