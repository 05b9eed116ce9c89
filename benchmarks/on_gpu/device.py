"""What the device can do at best, measured: the ceilings that everything else is a share of."""

import platform
import time
from collections.abc import Callable

import torch


def describe(device: str) -> dict[str, str]:
    """The machine in words."""
    import transformers

    facts = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    if device == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        return {"device": properties.name, "memory": memory, "triton": triton.__version__, **facts}
    return {"device": platform.processor() or platform.machine(), **facts}


def seconds(call: Callable[[], object], device: str, *, repeats: int = 20) -> float:
    """Median seconds of one call after a warm-up, by the device's own clock; launches overlap as they do in use."""
    for _ in range(3):
        call()
    if device != "cuda":
        times = []
        for _ in range(min(repeats, 5)):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    for event in events[:-1]:
        event.record()
        call()
    events[-1].record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) / 1e3 for before, after in zip(events, events[1:], strict=False)]
    return sorted(times)[len(times) // 2]


def read_bandwidth(device: str) -> float:
    """Bytes a second of a kernel that only reads; the array is far larger than any cache."""
    values = torch.ones((4 << 30) // 4 if device == "cuda" else 1 << 24, dtype=torch.float32, device=device)
    return values.nbytes / seconds(values.sum, device)


def copy_bandwidth(device: str) -> float:
    """Bytes read and written a second by a plain copy."""
    source = torch.ones((4 << 30) // 4 if device == "cuda" else 1 << 24, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def matmul_rate(device: str) -> float:
    """Floating-point operations a second of a large bfloat16 product."""
    size = 8192 if device == "cuda" else 512
    left = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    right = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    return float(2 * size**3 / seconds(lambda: left @ right, device))


def ceilings(device: str) -> dict[str, float]:
    """All of them."""
    return {
        "read_bytes_per_second": read_bandwidth(device),
        "copy_bytes_per_second": copy_bandwidth(device),
        "bf16_flops": matmul_rate(device),
    }


def idle_share(call: Callable[[], object], device: str) -> float:
    """Share of the time from the first kernel of `call` to its last in which the device runs none; NaN on a CPU."""
    if device != "cuda":
        call()
        return float("nan")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    first, covered_until = spans[0]
    busy = covered_until - first
    for start, end in spans[1:]:
        busy += max(0.0, end - max(start, covered_until))
        covered_until = max(covered_until, end)
    return 1 - busy / (covered_until - first)
