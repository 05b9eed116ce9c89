"""What the machine offers: which device, how many threads, how large a step, how much memory for the KV cache."""

import os
from dataclasses import replace

import torch

from .config import EngineConfig

_CPU_STEP_TOKENS = (
    512  # about 0.4 s of a small CPU's time for a 135M model: longer steps stall streams, shorter ones waste GEMM
)
_GPU_STEP_TOKENS = 8192
_CPU_MEMORY_SHARE = 0.25  # the rest of the machine belongs to the weights and to other programs
_GPU_MEMORY_SHARE = 0.9
_GIB = 1 << 30


def resolve(config: EngineConfig) -> EngineConfig:
    """A copy of the configuration with every automatic value but the KV memory filled in; sets the thread count."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    step_tokens = config.max_num_batched_tokens or (_GPU_STEP_TOKENS if name == "cuda" else _CPU_STEP_TOKENS)
    num_threads = config.num_threads or _num_physical_cores()
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
    page_size = os.sysconf("SC_PAGE_SIZE")
    available = os.sysconf("SC_AVPHYS_PAGES") * page_size
    return min(int(_CPU_MEMORY_SHARE * available), 4 * _GIB)


def _num_physical_cores() -> int:
    """Cores this process may run on, hyper-threads counted once where the kernel tells."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in cpus:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                cores.add(file.read().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
