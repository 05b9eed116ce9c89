"""Fetch a model from the Hugging Face Hub, safetensors only, and use the kept copy from then on."""

from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from penstock.scheduler.errors import ModelLoadError

# Weights as safetensors, configuration, tokenizers, templates; never pickles, which can run code.
_WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py"]
# The same weights again, for other programs.
_UNWANTED_FILES = ["consolidated*", "original/*", "onnx/*", "openvino/*"]


def fetch_snapshot(repository: str, cache: Path, console: Console) -> Path:
    """The folder of the Hub's model `repository` (owner/name), downloaded first if it has never been complete.

    A complete copy is used as it is and the Hub is not asked again; remove it to get a newer revision.

    Raises:
        ModelLoadError: the Hub has no such model, refuses it, or cannot be reached.
    """
    kept = cache / "complete" / repository.replace("/", "--")
    if kept.is_file():
        folder = Path(kept.read_text(encoding="utf-8"))
        if folder.is_dir():
            return folder
    # Imported here: a start with local models should not wait for it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    # The Hub's client draws its own bars: they alone know what its parallel transfers have done.
    console.print(f"Fetching {repository} from the Hugging Face Hub", highlight=False)
    try:
        folder = Path(
            snapshot_download(
                repository, cache_dir=cache, allow_patterns=_WANTED_FILES, ignore_patterns=_UNWANTED_FILES
            )
        )
    except GatedRepoError as error:
        raise ModelLoadError(f"{repository} is gated: accept its terms on the Hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"there is no folder {repository} here, and no such model on the Hub (if it is private, set HF_TOKEN)"
        ) from error
    except Exception as error:  # the client's transport errors have no public root in common
        raise ModelLoadError(
            f"there is no folder {repository} here, and it could not be fetched from the Hub: {_first_line(error)} "
            "(without network, serve a folder or a .gguf file)"
        ) from error
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(str(folder), encoding="utf-8")
    return folder


def snapshot_bytes(repository: str) -> int | None:
    """How much `fetch_snapshot` would download of the Hub's model, None if the Hub does not tell."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(repository, files_metadata=True).siblings or []
    except Exception:  # the client's errors have no public root in common; the download itself will explain them
        return None
    return sum(file.size or 0 for file in files if _is_wanted(file.rfilename))


def _is_wanted(file: str) -> bool:
    def fits(patterns: list[str]) -> bool:
        return any(fnmatch(file, pattern) for pattern in patterns)

    return fits(_WANTED_FILES) and not fits(_UNWANTED_FILES)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
