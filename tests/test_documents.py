"""The documents: every file that they name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md"]
ROOMS = ("serving", "scheduler", "kernels", "tests", "benchmarks", "docs")

CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?:{'|'.join(ROOMS)})/[\w./-]*")
FILE_NAME = re.compile(r"\w+\.py")
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    named = [ROOT / code for code in CODE.findall(text) if PATH.fullmatch(code)]
    linked = [document.parent / link for link in LINK.findall(text)]
    assert [path for path in named + linked if not path.exists()] == []


def test_every_file_that_the_architecture_names_exists() -> None:
    """Also those that stand without their folder, because the sentence before named it."""
    names = {code for code in CODE.findall((ROOT / "ARCHITECTURE.md").read_text()) if FILE_NAME.fullmatch(code)}
    there = {file.name for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    assert names, "the architecture names no file"
    assert names - there == set()
