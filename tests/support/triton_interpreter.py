"""Runs functions in a process where Triton kernels are interpreted on the CPU.

A process of its own, because Triton reads TRITON_INTERPRET when it is first imported, and any earlier test may have
imported it.
"""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"


@contextmanager
def interpreter() -> Iterator[Executor]:
    """An executor of one such process; the functions it is given must be importable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare) as executor:
        yield executor
