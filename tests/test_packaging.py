"""What the wheel holds, and that our folder called kernels is in nobody's way."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("serving", "scheduler", "kernels")

# The names that transformers imports from Hugging Face's kernels when its version fits.
FAKE_KERNELS = """
class _Anything:
    def __init__(self, *args, **kwargs): pass
    def __call__(self, decorated): return decorated

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything
"""
FAKE_KERNELS_VERSION = "0.18.2"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*ROOMS, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", target, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_the_rooms_under_penstock_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        f"penstock/{file.relative_to(ROOT)}"
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.suffix in (".py", ".c", ".h") or file.name == "py.typed"
    }
    assert names == sources
    assert {f"penstock/{room}/py.typed" for room in ROOMS} <= names
    assert "penstock/__init__.py" not in names


def test_the_wheel_installs_the_command_and_carries_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(entry_points).decode())
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        text = archive.read(metadata).decode()
    assert dict(parser["console_scripts"]) == {"penstock": "penstock.serving.cli:main"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in text


def make_fake_kernels(folder: Path) -> None:
    """A stand-in for Hugging Face's kernels, of a version that transformers uses."""
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text(FAKE_KERNELS)
    metadata = folder / f"kernels-{FAKE_KERNELS_VERSION}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {FAKE_KERNELS_VERSION}\n")


@pytest.mark.parametrize("library_present", [False, True])
def test_transformers_imports_beside_our_kernels_folder(tmp_path: Path, library_present: bool) -> None:
    """`python -c` puts the working directory, here the checkout, first on the path: before any library."""
    code = (
        "import sys\n"
        "sys.path.append(sys.argv[1])\n"
        "import transformers.models, transformers.integrations.hub_kernels\n"
        "from transformers import LlamaForCausalLM\n"
        "from transformers.utils import is_kernels_available\n"
        "print(is_kernels_available(), getattr(sys.modules.get('kernels'), '__file__', None))\n"
        "import penstock.kernels.dispatch\n"
        "print(penstock.kernels.dispatch.__file__)\n"
    )
    if library_present:
        make_fake_kernels(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, ours = done.stdout.splitlines()
    assert str(ROOT) not in first, "transformers took our folder for the library"
    if library_present:
        assert first == f"True {tmp_path / 'kernels' / '__init__.py'}"
    assert Path(ours).resolve() == ROOT / "kernels" / "dispatch.py"
