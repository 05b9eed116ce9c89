"""What the machine offers: which device, how many threads, how large a step, how much memory for the KV cache."""

import ctypes
import os
from dataclasses import replace
from pathlib import Path

import torch

from .config import EngineConfig
from .errors import DeviceFailedError

# About 0.4 s of a small CPU's time for a 135M model: longer steps stall streams, shorter ones waste matrix products.
_CPU_STEP_TOKENS = 512
_GPU_STEP_TOKENS = 8192
_CPU_ITL_TARGET_MS = 400
_GPU_ITL_TARGET_MS = 50
_CPU_MEMORY_SHARE = 0.25  # the rest of the machine belongs to the weights and to other programs
_GPU_MEMORY_SHARE = 0.9
_CPU_MAX_KV_BYTES = 2 << 30  # writing more at the start would take seconds
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
"""How PyTorch, CUDA and its libraries say so in errors that are of no kind of their own."""
_CGROUP = Path("/sys/fs/cgroup")


def resolve(config: EngineConfig) -> EngineConfig:
    """A copy of the configuration with every automatic value but the KV memory filled in."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    step_tokens = config.max_num_batched_tokens or (_GPU_STEP_TOKENS if name == "cuda" else _CPU_STEP_TOKENS)
    itl_target_ms = config.itl_target_ms
    if itl_target_ms < 0:
        itl_target_ms = _GPU_ITL_TARGET_MS if name == "cuda" else _CPU_ITL_TARGET_MS
    # torch's own number is what OMP_NUM_THREADS says, if it is set.
    num_threads = config.num_threads or min(torch.get_num_threads(), _num_usable_cores())
    return replace(
        config,
        device=name,
        max_num_batched_tokens=step_tokens,
        max_num_seqs=min(config.max_num_seqs, step_tokens),
        itl_target_ms=itl_target_ms,
        overlap=("on" if name == "cuda" else "off") if config.overlap == "auto" else config.overlap,
        num_threads=num_threads,
    )


def memory_for_kv_cache(config: EngineConfig, keep_free: int) -> int:
    """Bytes that the KV memory of all models may take, if `keep_free` bytes are wanted for more weights."""
    free, total = available_memory(config.device) - keep_free, total_memory(config.device)
    if config.device == "cuda":
        return max(0, int(free - (1 - _GPU_MEMORY_SHARE) * total))
    return max(0, min(int(_CPU_MEMORY_SHARE * free), _CPU_MAX_KV_BYTES))


def memory_for_weights(device: str) -> int:
    """Bytes that another model's weights may take: what is free, less what steps need for themselves on a GPU.

    Negative if less is free than they need.
    """
    margin = int((1 - _GPU_MEMORY_SHARE) * total_memory(device)) if device == "cuda" else 0
    return available_memory(device) - margin


def available_memory(device: str) -> int:
    """Bytes of the device that are still free; on a CPU what the kernel and the container's limit allow."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    available = _meminfo("MemAvailable")
    limit, usage = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        # Files that were read count as used until somebody needs the memory.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int(usage.read_text()) - int(stat.get("inactive_file", 0))
        available = min(available, max(0, int(text) - used))
    return available


def total_memory(device: str) -> int:
    """Bytes of the device, or of the container if it may take fewer."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    limit = _CGROUP / "memory.max"
    total = _meminfo("MemTotal")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
    return total


def has_float8(device: torch.device) -> bool:
    """Whether the device computes with float8; a CPU does in torch's own code, slowly."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an operation failed because there was not enough memory for it, so that a smaller one may not."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _OUT_OF_MEMORY)


def check_works(device: str, error: Exception) -> None:
    """Find out whether the device still computes after `error`.

    Some errors of a GPU, a wrong address in a kernel for example, end every later operation of the process too.

    Raises:
        DeviceFailedError: it does not.
    """
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as failure:
            raise DeviceFailedError(f"the GPU has failed: {failure}") from error
    elif isinstance(error, torch.AcceleratorError):
        raise DeviceFailedError(f"the device has failed: {error}") from error


def return_memory(device: str) -> None:
    """Give memory that was freed back to the system, for other programs and for `available_memory` to see."""
    if device == "cuda":
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc keeps what it could reuse, which after a model are gigabytes
        libc.malloc_trim(0)


def _meminfo(name: str) -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


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
