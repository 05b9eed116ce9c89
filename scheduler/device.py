"""What the machine offers: which device, how many threads, how large a step, how much memory for the KV cache."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from .config import EngineConfig

# About 0.4 s of a small CPU's time for a 135M model: longer steps stall streams, shorter ones waste matrix products.
_CPU_STEP_TOKENS = 512
_GPU_STEP_TOKENS = 8192
_CPU_MEMORY_SHARE = 0.25  # the rest of the machine belongs to the weights and to other programs
_GPU_MEMORY_SHARE = 0.9
_CPU_MAX_KV_BYTES = 2 << 30  # writing more at the start would take seconds


def resolve(config: EngineConfig) -> EngineConfig:
    """A copy of the configuration with every automatic value but the KV memory filled in; sets the thread count."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    step_tokens = config.max_num_batched_tokens or (_GPU_STEP_TOKENS if name == "cuda" else _CPU_STEP_TOKENS)
    # torch's own number is what OMP_NUM_THREADS says, if it is set.
    num_threads = config.num_threads or min(torch.get_num_threads(), _num_usable_cores())
    torch.set_num_threads(num_threads)
    return replace(
        config,
        device=name,
        max_num_batched_tokens=step_tokens,
        max_num_seqs=min(config.max_num_seqs, step_tokens),
        num_threads=num_threads,
    )


def memory_for_kv_cache(config: EngineConfig) -> int:
    """Bytes that the KV caches of all models may take, after the weights are loaded."""
    if config.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return max(0, int(free - (1 - _GPU_MEMORY_SHARE) * total))
    return min(int(_CPU_MEMORY_SHARE * _available_memory()), _CPU_MAX_KV_BYTES)


def _available_memory() -> int:
    """Bytes a program may still take: what the kernel estimates, within the container's limit if there is one."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo, limit, usage = (
        Path(path) for path in ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
    )
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, max(0, int(text) - int(usage.read_text())))
    return available


def _num_usable_cores() -> int:
    """Cores this process may run on, hyper-threads counted once, within the container's quota if there is one."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    num_cores = len(cores)
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists() and (fields := quota.read_text().split())[0] != "max":
        num_cores = min(num_cores, -(-int(fields[0]) // int(fields[1])))
    return max(1, num_cores)
