"""Tokens a second with and without n-gram speculation, offline, where text repeats itself and where it does not.

The same jobs run through one engine in this process with speculation off and on, in turn, and must give the same
tokens. The best of several rounds is reported, because other work only ever adds time.
"""

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from penstock.scheduler.config import DtypeName, EngineConfig, ModelSpec
from penstock.scheduler.drafts import Speculation
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Submit
from penstock.scheduler.sampling_params import SamplingParams

TEXT = (
    "The harbour office opens at seven in the morning. Every boat that enters the harbour reports to the office on "
    "channel twelve and waits for a berth. Boats longer than twenty metres pay for two berths. Water and power are "
    "included in the price of a berth, fuel is not. The office closes at nine in the evening; boats that come later "
    "wait at the outer pier until the morning. Dogs are welcome on the piers but must be kept on a lead."
)
PROMPTS = {
    "repeat": f"Repeat this text word by word, without any change:\n\n{TEXT}",
    "edit": f"Replace the word harbour by the word marina in this text, and write the whole new text:\n\n{TEXT}",
    "extract": f"List the sentences of this text that speak of berths, word by word:\n\n{TEXT}",
    "invent": "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
}


@dataclass(frozen=True)
class Run:
    """One measurement."""

    token_ids: list[list[int]]
    tokens_per_second: float
    num_drafted: int
    num_accepted: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a chat model that uses <|im_start|>, such as SmolLM2's")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--num-draft-tokens", type=int, default=EngineConfig().num_draft_tokens)
    parser.add_argument("--num-threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    engine = make_engine(arguments.model, arguments.dtype, arguments.num_threads)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    on = Speculation.of(replace(engine.config, speculation="ngram", num_draft_tokens=arguments.num_draft_tokens))
    print(f"{engine.config.num_threads} threads, {arguments.dtype}; {' '.join(sys.argv)}\n")
    print(f"{'text':<10} {'streams':>7} {'off tok/s':>10} {'ngram tok/s':>12} {'gain':>6} {'drafts':>7} {'right':>6}")
    for name, text in PROMPTS.items():
        prompt = tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").ids
        for streams in arguments.streams:
            jobs = [make_sampling(arguments, seed) for seed in range(streams)]
            best: dict[bool, Run] = {}
            for _ in range(arguments.rounds):
                for speculates in (False, True):
                    done = measure(engine, prompt, jobs, on if speculates else None)
                    known = best.setdefault(speculates, done)
                    if done.tokens_per_second > known.tokens_per_second:
                        best[speculates] = done
                    assert done.token_ids == best[False].token_ids, f"{name}: speculation changed the output"
            off, ngram = best[False], best[True]
            share = ngram.num_accepted / ngram.num_drafted if ngram.num_drafted else 0.0
            gain = ngram.tokens_per_second / off.tokens_per_second
            print(
                f"{name:<10} {streams:>7} {off.tokens_per_second:>10.1f} {ngram.tokens_per_second:>12.1f} {gain:>6.2f} "
                f"{ngram.num_drafted:>7} {share:>6.0%}"
            )


def make_engine(folder: Path, dtype: DtypeName, num_threads: int) -> Engine:
    """Prompts are computed beside streams without bound: only the streams are measured."""
    config = EngineConfig(device="cpu", itl_target_ms=0, num_threads=num_threads, kv_cache_memory=512 << 20)
    engine = Engine(config)
    engine.install(load_runner(ModelSpec("m", str(folder), "generate", dtype=dtype), config))
    return engine


def make_sampling(arguments: argparse.Namespace, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=arguments.max_tokens, seed=seed, temperature=arguments.temperature, ignore_eos=True
    )


def measure(engine: Engine, prompt: list[int], jobs: list[SamplingParams], speculation: Speculation | None) -> Run:
    """Run all jobs; the time is that of the tokens after every job has had its first."""
    engine.scheduler.speculation = speculation
    engine.scheduler.generation_lanes["m"].kv.prefix_cache.clear()  # every round computes its prompts
    before = engine.stats()["m"]
    outputs: dict[str, list[int]] = {str(number): [] for number in range(len(jobs))}
    for number, sampling in enumerate(jobs):
        engine.add(Submit(str(number), "m", prompt, sampling, float(number)))
    while not all(outputs.values()):
        step(engine, outputs)
    num_before = sum(map(len, outputs.values()))
    start = time.perf_counter()
    while engine.has_work:
        step(engine, outputs)
    seconds = time.perf_counter() - start
    after = engine.stats()["m"]
    num_timed = sum(map(len, outputs.values())) - num_before
    return Run(
        list(outputs.values()),
        num_timed / seconds,
        after.draft_tokens - before.draft_tokens,
        after.accepted_draft_tokens - before.accepted_draft_tokens,
    )


def step(engine: Engine, outputs: dict[str, list[int]]) -> None:
    for output in engine.step().outputs:
        outputs[output.request_id] += output.token_ids


if __name__ == "__main__":
    main()
