"""Write `tokenizer.json` for a model folder that has only a slow tokenizer: `python -m ... FOLDER`.

The front reads `tokenizer.json` with the tokenizers library alone; everything else needs transformers, and that
happens here, once.
"""

import sys
from pathlib import Path

from ..errors import ModelLoadError, PenstockError


def convert(folder: Path) -> None:
    """Write `tokenizer.json` into `folder`, a model in Hugging Face form; one that is there is kept.

    Raises:
        ModelLoadError: the folder has no tokenizer, or one that has no equal in the tokenizers library.
    """
    from transformers import AutoTokenizer

    target = folder / "tokenizer.json"
    if target.exists():
        return
    if not folder.is_dir():
        raise ModelLoadError(f"{folder} is not a folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except Exception as error:  # whatever a tokenizer's own reader raises, the folder is at fault
        raise ModelLoadError(f"{folder} has no tokenizer that can be converted: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelLoadError(f"{folder}: {type(tokenizer).__name__} has no equal in the tokenizers library")
    partial = target.with_suffix(".json.partial")
    tokenizer.backend_tokenizer.save(str(partial))
    partial.rename(target)


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status and explains a refusal in the last line of standard error."""
    if len(arguments) != 1:
        print("usage: python -m penstock.scheduler.models.convert_tokenizer FOLDER", file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]))
    except (PenstockError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
