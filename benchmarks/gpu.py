"""Checks the engine on a GPU, then measures it: kernels, steps, whole workloads, and transformers beside it.

    python benchmarks/gpu.py                              everything; about ten minutes for both models on one H100
    python benchmarks/gpu.py --sections ceilings kernels  some of it
    python benchmarks/gpu.py --smoke                      every section with a tiny model, on a CPU too: only a trial

Nothing but torch, transformers, triton and numpy is needed, no network and no weights: models of the known shapes get
random ones. Each section runs in a process of its own, so that none inherits memory or a crash from another. The tables
print last; `gpu.json`, `gpu.md` and `gpu.png` land in benchmarks/results or where `--output` says.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from on_gpu import checks, device, engine, kernels, peer, report, workloads
from on_gpu.models import Shape, shapes
from rich.console import Console

from penstock.scheduler.config import KVCacheDtype, Quantization
from penstock.scheduler.engine import Engine

BATCHES = (1, 8, 32, 64, 128, 256)
PEER_BATCHES = (32, 48, 64, 100, 128, 256)
FLOAT8: tuple[tuple[Quantization, KVCacheDtype], ...] = (("fp8", "auto"), ("none", "fp8"), ("fp8", "fp8"))
FLOAT8_BATCHES = (1, 32, 256)
CONTEXT = 1024
MEASURED_STEPS = 64

Rows = list[dict[str, Any]]


def main() -> None:
    arguments = parse()
    console = Console()
    if arguments.only:  # a child: one section, its rows to a file
        Path(arguments.rows).write_text(json.dumps(section(arguments)))
        return
    names = arguments.sections or section_names(arguments.smoke)
    document: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": device.describe(arguments.device),
        "sections": {},
    }
    console.print(document["machine"])
    ceilings: dict[str, float] = {}
    for name in names:
        console.print(f"{datetime.now(UTC):%H:%M:%S} {name}", highlight=False)
        document["sections"][name] = result = run_child(name, arguments, ceilings)
        ceilings = ceilings or result.get("ceilings", {})
        report.write(arguments.output, document)  # whatever happens to the rest, this is there
    report.print_tables(document["sections"], console)
    if any("error" in result for result in document["sections"].values()):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", metavar="NAME", help="only these; see --list")
    parser.add_argument("--list", action="store_true", help="print the sections' names")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few repeats")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one section")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", type=json.loads, default={}, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(section_names(arguments.smoke)))
        raise SystemExit
    if arguments.device != "cuda" and not arguments.smoke:
        parser.error("there is no GPU here; --smoke tries the program out on a CPU")
    return arguments


def run_child(name: str, arguments: argparse.Namespace, ceilings: dict[str, float]) -> dict[str, Any]:
    """Run one section in its own process."""
    with tempfile.NamedTemporaryFile(suffix=".json") as rows:
        command = [sys.executable, __file__, "--only", name, "--rows", rows.name, "--device", arguments.device]
        command += ["--ceilings", json.dumps(ceilings)] + ["--smoke"] * arguments.smoke
        started = time.perf_counter()
        try:
            finished = subprocess.run(command, timeout=arguments.timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"it took longer than {arguments.timeout:.0f} s"}
        text = Path(rows.name).read_text()
        if not text:
            return {"error": f"its process ended with status {finished.returncode}"}
        result: dict[str, Any] = json.loads(text)
        return {**result, "seconds": time.perf_counter() - started}


def section_names(smoke: bool) -> list[str]:
    names = ["ceilings", "checks", "kernels"]
    for model in shapes(smoke=smoke):
        names += [
            f"{part} {model}" for part in ("decode steps", "float8 steps", "prefill", "nano", "beside transformers")
        ]
    return names


def section(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rows of one section, or what went wrong in it."""
    part, _, model = arguments.only.rpartition(" ")
    try:
        match part or model:
            case "ceilings":
                found = device.ceilings(arguments.device)
                return {"ceilings": found, "rows": [{"ceiling": name, "measured": found[name]} for name in found]}
            case "checks":
                return {"rows": checks.run(arguments.device)}
            case "kernels":
                return {"rows": kernels.run(arguments.device, arguments.ceilings, smoke=arguments.smoke)}
        measure: Callable[[Shape, argparse.Namespace], Rows] = {
            "decode steps": decode_steps,
            "float8 steps": float8_steps,
            "prefill": prefill,
            "nano": nano,
            "beside transformers": beside_transformers,
        }[part]
        return {"rows": measure(shapes(smoke=arguments.smoke)[model], arguments)}
    except Exception:  # one section's failure is a line of the report, not its end
        return {"error": traceback.format_exc()}


def decode_steps(shape: Shape, arguments: argparse.Namespace) -> Rows:
    """One step at each batch size with 1,024 tokens of context, as a share of the floor."""
    context, num_steps = (64, 8) if arguments.smoke else (CONTEXT, MEASURED_STEPS)
    ours = engine.make_engine(shape, arguments.device, max_model_len=2 * context)
    rows: Rows = []
    for batch in (1, 8) if arguments.smoke else BATCHES:
        workload = workloads.equal(batch, context, num_steps, shape.config.vocab_size)
        engine.decode_steps(ours, workloads.equal(batch, 8, 4, shape.config.vocab_size))  # kernels and graphs are made
        steps = engine.decode_steps(ours, workload)
        floor = shape.decode_floor(batch, context + num_steps // 2, *ceilings_of(arguments))
        rows.append(
            {
                "B": batch,
                "ms": 1e3 * steps.median,
                "floor ms": 1e3 * floor,
                "share of floor %": 100 * floor / steps.median,
                "tok/s": batch / steps.median,
                "device idle %": 100 * idle_share(ours, shape, batch, arguments.device),
            }
        )
    return rows


def float8_steps(shape: Shape, arguments: argparse.Namespace) -> Rows:
    """The same steps with weights, keys and values, or both in float8; the section before has them in bfloat16."""
    context, num_steps = (64, 8) if arguments.smoke else (CONTEXT, MEASURED_STEPS)
    rows: Rows = []
    for quantization, kv_cache_dtype in FLOAT8:
        ours = engine.make_engine(
            shape,
            arguments.device,
            max_model_len=2 * context,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
        )
        for batch in (1, 8) if arguments.smoke else FLOAT8_BATCHES:
            engine.decode_steps(ours, workloads.equal(batch, 8, 4, shape.config.vocab_size))
            steps = engine.decode_steps(ours, workloads.equal(batch, context, num_steps, shape.config.vocab_size))
            row = {"--quantization": quantization, "--kv-cache-dtype": kv_cache_dtype, "B": batch}
            rows.append({**row, "ms": 1e3 * steps.median, "tok/s": batch / steps.median})
        engine.free(ours)
        del ours
    return rows


def idle_share(ours: Engine, shape: Shape, batch: int, on: str) -> float:
    """Share of a run of short requests, nearly all of it decode steps, in which the device waits for the host."""
    workload = workloads.equal(batch, 8, 64, shape.config.vocab_size)
    return device.idle_share(lambda: engine.run(ours, workload), on)


def prefill(shape: Shape, arguments: argparse.Namespace) -> Rows:
    """The time to the first token of one long prompt."""
    length = 256 if arguments.smoke else 8192
    ours = engine.make_engine(shape, arguments.device, max_model_len=length + 8)
    prompt = workloads.equal(1, length, 1, shape.config.vocab_size).prompts[0]
    engine.prefill(ours, prompt[:64])
    taken = engine.prefill(ours, prompt)
    floor = shape.prefill_floor(length, ceilings_of(arguments)[1])
    return [{"tokens": length, "ms": 1e3 * taken, "floor ms": 1e3 * floor, "share of floor %": 100 * floor / taken}]


def nano(shape: Shape, arguments: argparse.Namespace) -> Rows:
    """The common benchmark of small engines, all requests at once."""
    workload = workloads.nano(smoke=arguments.smoke)
    ours = engine.make_engine(shape, arguments.device, max_model_len=2080)
    engine.run(ours, workloads.equal(len(workload.prompts), 16, 8, shape.config.vocab_size))
    result = engine.run(ours, workload)
    return [{"engine": "penstock", "seconds": result.seconds, "output tok/s": result.tokens_per_second}]


def beside_transformers(shape: Shape, arguments: argparse.Namespace) -> Rows:
    """Output tokens a second of ours, of transformers as it comes, and of transformers as well configured as can be."""
    input_len, output_len = (16, 8) if arguments.smoke else (256, 256)
    batches = (4,) if arguments.smoke else PEER_BATCHES
    loads = [workloads.equal(batch, input_len, output_len, shape.config.vocab_size) for batch in batches]
    ours = engine.make_engine(shape, arguments.device, max_model_len=1024)
    rows: Rows = []
    for batch, workload in zip(batches, loads, strict=True):
        engine.run(ours, workloads.equal(batch, 16, 8, shape.config.vocab_size))
        rows.append({"B": batch, "ours tok/s": engine.run(ours, workload).tokens_per_second})
    engine.free(ours)
    del ours
    model = shape.make(arguments.device, "sdpa")
    loads_as_it_comes = loads if arguments.smoke else [loads[0], loads[2]]  # O(B^2) work: two are enough
    for workload in loads_as_it_comes:
        row = rows[loads.index(workload)]
        row["transformers tok/s"] = peer.run(model, workload, best=False).tokens_per_second
    for row, workload in zip(rows, loads, strict=True):
        best = peer.run(model, workload, best=True).tokens_per_second
        row["transformers at its best tok/s"] = best
        row["ours / its best"] = row["ours tok/s"] / best
    return rows


def ceilings_of(arguments: argparse.Namespace) -> tuple[float, float]:
    """Measured bytes read and operations a second; measured here if the section runs alone."""
    found = arguments.ceilings or device.ceilings(arguments.device)
    return found["read_bytes_per_second"], found["bf16_flops"]


if __name__ == "__main__":
    main()
