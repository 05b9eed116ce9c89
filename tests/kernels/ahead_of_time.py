"""Compiles Triton kernels for sm_90 on any machine and says what became of them."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MAX_SHARED = 227 * 1024  # bytes that one processor of sm_90 has for its programs
_POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_UNALIGNED = {"block_table", "seq_lens", "query_start_loc"}  # by the launch's own choice


@dataclass(frozen=True)
class Compiled:
    """Facts of one compiled kernel; bytes are those of one program, registers those of one thread."""

    ptx: str
    shared: int
    registers: int
    spilled: int

    @property
    def uses_wgmma(self) -> bool:
        """Whether matrix products run on Hopper's own unit and not on its older one."""
        return "wgmma.mma_async" in self.ptx


def compile_kernel(
    kernel: Any,
    dtypes: dict[str, torch.dtype],
    constants: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
) -> Compiled:
    """Compile one variant, its tensors and strides aligned as a model's are.

    Args:
        kernel: the jitted function.
        dtypes: dtypes of its tensors by argument.
        constants: compile-time arguments; those it does not have are ignored. Other arguments are numbers.
        num_warps: warps of a program.
        num_stages: depth of its pipelines.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constexprs = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constexprs:
            signature[name] = "constexpr"
        elif name in dtypes:
            signature[name] = _POINTERS[dtypes[name]]
        else:
            signature[name] = "fp32" if name in ("scale", "softcap", "eps") else "i32"
        is_aligned = name in dtypes and name not in _UNALIGNED
        if is_aligned or re.search("_stride_[thbks]$", name):
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {"num_warps": num_warps, "num_stages": num_stages}
    source = ASTSource(kernel, signature, constexprs, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    ptx = compiled.asm["ptx"]
    registers, spilled = _resources(ptx)
    return Compiled(ptx, compiled.metadata.shared, registers, spilled)


def _resources(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills of them."""
    import triton

    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(assembler), "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    assert registers is not None and spilled is not None, report
    return int(registers[1]), int(spilled[1])
