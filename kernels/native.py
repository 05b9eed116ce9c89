"""Compiles the C kernels of this folder for this machine's processor and loads them.

The first use compiles every `*.c` here into one shared object, which later processes find in a folder of the user's
cache: `$PENSTOCK_NATIVE_CACHE`, else `$XDG_CACHE_HOME/penstock/native`, else `~/.cache/penstock/native`. A name holds
everything that the code depends on, so an object never has to be replaced. A process without such a folder compiles for
itself alone.

The code runs in the threads of the OpenMP runtime that torch has loaded: a second one would keep as many threads
spinning again.
"""

import ctypes
import hashlib
import logging
import os
import platform
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
# Contraction to fused multiply-adds keeps results a function of the operands alone. -ffast-math would not: it reorders
# sums as suits the loop, and it takes for granted that there are no infinities, which masks are made of.
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fno-trapping-math", "-Wall", "-Wextra"),
)
_RUNTIMES = ("libgomp", "libiomp5", "libomp")
"""OpenMP runtimes that know gcc's entry points; torch brings one of them."""


class NativeError(Exception):
    """The kernels cannot be compiled or loaded; the message says why."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot run: then the callers' torch code does the work.

    None is the answer without gcc, on other systems than Linux, and on processors without bfloat16 dot products
    (`avx512_bf16`). The reason is logged once.
    """
    try:
        _check_machine()
        return _load()
    except (NativeError, OSError, subprocess.SubprocessError) as error:
        logger.info("the CPU kernels are torch's, without native code: %s", error)
        return None


def is_native(tensor: torch.Tensor) -> bool:
    """Whether the compiled kernels compute with tensors like this one: bfloat16 on the CPU."""
    return tensor.dtype == torch.bfloat16 and tensor.is_cpu and library() is not None


def function(name: str, *argument_types: Any) -> Callable[..., None]:
    """A compiled kernel that returns nothing, with the C types of its arguments; only where `library` gives one."""
    compiled = library()
    assert compiled is not None
    kernel: Callable[..., None] = getattr(compiled, name)
    kernel.argtypes = argument_types  # type: ignore[attr-defined]
    kernel.restype = None  # type: ignore[attr-defined]
    return kernel


def _check_machine() -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NativeError(f"it is for Linux on x86_64, and this is {platform.system()} on {platform.machine()}")
    if not torch.cpu._is_avx512_bf16_supported():
        raise NativeError("the processor has no avx512_bf16 instructions")


def _load() -> ctypes.CDLL:
    """The shared object, compiled now if no process has done it before."""
    runtime = _openmp_runtime()
    sources = sorted(_SOURCES.glob("*.c"))
    name = f"{_key(sources, runtime)}.so"
    target: Path | None
    try:
        folder = _cache_folder()
        target = folder / name
        if target.exists():
            try:
                return ctypes.CDLL(str(target))
            except OSError as error:  # a machine that lost power may have kept the name and not the bytes
                logger.warning("the compiled CPU kernels are damaged and made again: %s", error)
        workplace = tempfile.TemporaryDirectory(dir=folder)
    except (NativeError, OSError) as error:
        logger.warning("the CPU kernels are compiled for this process alone: %s", error)
        target = None
        workplace = tempfile.TemporaryDirectory()
    start = time.perf_counter()
    # Made aside and renamed: a process never sees half an object, and of two that compile at once the last one wins.
    with workplace as path:
        built = _build(sources, runtime, Path(path))
        logger.info("compiled the native CPU kernels in %.1f s", time.perf_counter() - start)
        return ctypes.CDLL(str(built if target is None else built.rename(target)))


def _build(sources: list[Path], runtime: Path, workplace: Path) -> Path:
    objects = [workplace / f"{source.stem}.o" for source in sources]
    commands = [
        ["gcc", *_FLAGS, "-c", str(source), "-o", str(made)] for source, made in zip(sources, objects, strict=True)
    ]
    # All at once: a file takes seconds.
    compilers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    outputs = [compiler.communicate()[1] for compiler in compilers]
    for source, compiler, output in zip(sources, compilers, outputs, strict=True):
        if compiler.returncode:
            raise NativeError(f"gcc cannot compile {source.name}: {output.strip()}")
    built = workplace / "kernels.so"
    # Without -fopenmp, which would ask for gcc's own libgomp beside torch's.
    link = ["gcc", "-shared", *map(str, objects), str(runtime), "-lm", "-o", str(built)]
    done = subprocess.run(link, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NativeError(f"gcc cannot link the kernels: {done.stderr.strip()}")
    return built


def _openmp_runtime() -> Path:
    """The file of the OpenMP runtime in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(_RUNTIMES):
            return path
    raise NativeError("torch has loaded no OpenMP runtime that gcc's code can use")


def _key(sources: list[Path], runtime: Path) -> str:
    """A digest of all that decides how the object turns out, and whether it can run here."""
    digest = hashlib.sha256()
    for source in [*sources, *sorted(_SOURCES.glob("*.h"))]:
        digest.update(source.name.encode() + source.read_bytes())
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    version = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    for part in (processor, version, torch.__version__, str(runtime), *_FLAGS):
        digest.update(part.encode())
    return digest.hexdigest()[:32]


def _cache_folder() -> Path:
    """The folder of compiled objects, made if missing; code is loaded from it, so nobody else may write there."""
    named = os.environ.get("PENSTOCK_NATIVE_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # stays as it is without a home
    folder = Path(named or Path(shared, "penstock", "native"))
    if not folder.is_absolute():
        raise NativeError(f"the cache folder {folder} is not an absolute path: set PENSTOCK_NATIVE_CACHE to one")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeError(f"{folder} belongs to somebody else, or others may write to it")
    return folder
