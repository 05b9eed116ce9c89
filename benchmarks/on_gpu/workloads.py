"""The workloads: how many requests, how long their prompts and outputs are, always the same for every engine."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Requests that are all there at the start."""

    name: str
    prompts: list[list[int]]
    output_lens: list[int]

    @property
    def num_output_tokens(self) -> int:
        """Tokens to generate, over all requests."""
        return sum(self.output_lens)


def nano(*, smoke: bool) -> Workload:
    """256 requests with prompts and outputs of 100 to 1024 tokens: 142,827 in, 133,966 out.

    The common benchmark of small engines; the order in which the numbers are drawn is part of it.
    """
    num_requests, longest, vocab_size = (4, 110, 500) if smoke else (256, 1024, 10000)
    generator = random.Random(0)
    prompts = [
        [generator.randint(0, vocab_size) for _ in range(generator.randint(100, longest))] for _ in range(num_requests)
    ]
    return Workload("nano", prompts, [generator.randint(100, longest) for _ in range(num_requests)])


def equal(num_requests: int, input_len: int, output_len: int, vocab_size: int) -> Workload:
    """So many requests of equal lengths, with prompts that share nothing."""
    generator = random.Random(num_requests)
    prompts = [[generator.randrange(vocab_size) for _ in range(input_len)] for _ in range(num_requests)]
    return Workload(f"{num_requests} x {input_len}/{output_len}", prompts, [output_len] * num_requests)
