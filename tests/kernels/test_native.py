"""The compiled kernels: found, made once by any number of processes, and done without where they cannot be."""

import ctypes
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from penstock.kernels import native

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kernels() -> ctypes.CDLL:
    library = native.library()
    if library is None:
        pytest.skip("no native kernels on this machine")
    return library


def test_the_exponential_is_that_of_torch(kernels: ctypes.CDLL) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), -200.0, 200.0, -87.0, 88.7])
    x = torch.cat([special, torch.linspace(-90, 88, 10_001)])
    result = torch.empty_like(x)
    kernels.penstock_exp(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(result.data_ptr()), ctypes.c_int64(len(x)))
    expected = torch.exp(x.double()).float()
    torch.testing.assert_close(result, expected, rtol=3e-7, atol=1e-38, equal_nan=True)


def test_narrowing_rounds_as_torch_does(kernels: ctypes.CDLL) -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([float("inf"), float("-inf"), float("nan"), 1.00390625, 3e38])])
    result = torch.empty(len(x), dtype=torch.bfloat16)
    kernels.penstock_narrow(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(result.data_ptr()), ctypes.c_int64(len(x)))
    torch.testing.assert_close(result, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def load_in_new_process(cache: Path, path: str | None = None) -> subprocess.Popen[str]:
    """A process that prints whether it has native kernels, and why not."""
    code = (
        "import logging\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from penstock.kernels.native import library\n"
        "print(library() is not None)\n"
    )
    environment = os.environ | {"PENSTOCK_NATIVE_CACHE": str(cache), "PYTHONPATH": str(ROOT / ".dev")}
    if path is not None:
        environment["PATH"] = path
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=environment)


def test_processes_that_start_together_share_one_object(kernels: ctypes.CDLL, tmp_path: Path) -> None:
    processes = [load_in_new_process(tmp_path / "cache") for _ in range(2)]
    for process in processes:
        output, errors = process.communicate()
        assert output == "True\n", errors
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".so"]


def test_without_a_compiler_torch_does_the_work(tmp_path: Path) -> None:
    output, errors = load_in_new_process(tmp_path, path="").communicate()
    assert output == "False\n"
    assert errors.count("\n") == 1
    assert "without native code" in errors


def test_a_compiler_that_fails_is_like_none(tmp_path: Path) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    output, errors = load_in_new_process(tmp_path, path=f"{tmp_path}:/bin").communicate()
    assert output == "False\n", errors


@pytest.fixture
def builds(kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The workplaces in which kernels are built from now on: with a copy of what is loaded, which takes no time."""
    workplaces = []

    def build(sources: list[Path], runtime: Path, workplace: Path) -> Path:
        workplaces.append(workplace)
        return Path(shutil.copy(kernels._name, workplace / "kernels.so"))

    monkeypatch.setattr(native, "_build", build)
    return workplaces


def test_a_damaged_object_is_made_again(builds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("PENSTOCK_NATIVE_CACHE", str(first))
    native._load()
    (sound,) = first.iterdir()
    second.mkdir(0o700)
    damaged = second / sound.name
    damaged.touch()
    monkeypatch.setenv("PENSTOCK_NATIVE_CACHE", str(second))
    for _ in range(2):
        assert native._load().penstock_linear
        assert damaged.read_bytes() == sound.read_bytes()
    assert len(builds) == 2


@pytest.mark.parametrize("trouble", ["no home", "not a folder", "others may write"])
def test_without_a_folder_of_ones_own_a_process_compiles_for_itself(
    trouble: str, builds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(user: int) -> object:
        raise KeyError(user)

    (tmp_path / "file").touch()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    cache = {"not a folder": tmp_path / "file" / "cache", "others may write": tmp_path / "shared"}.get(trouble)
    if cache is None:
        for name in ("HOME", "XDG_CACHE_HOME", "PENSTOCK_NATIVE_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pwd, "getpwuid", no_entry)
    else:
        monkeypatch.setenv("PENSTOCK_NATIVE_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    assert native._load().penstock_linear
    assert len(builds) == 1
    assert not builds[0].exists()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "shared"]


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_code_is_loaded_only_from_a_folder_of_ones_own(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setenv("PENSTOCK_NATIVE_CACHE", str(tmp_path))
    with pytest.raises(native.NativeError, match="others may write"):
        native._cache_folder()
