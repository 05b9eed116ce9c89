"""The law between the rooms, read off every import statement."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("serving", "scheduler", "kernels")
OPEN_TO_SERVING = {"messages", "sampling_params", "errors", "config", "launch", "flight_record"}
KERNEL_LIBRARIES = {"torch", "triton", "numpy", "penstock"}
MODEL_LIBRARIES = {"torch", "transformers", "sentence_transformers", "triton", "gguf", "safetensors"}
WEB_LIBRARIES = {"fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "httptools", "aiohttp", "jinja2"}


@dataclass(frozen=True)
class Import:
    """One imported module, relative names resolved."""

    file: Path
    line: int
    module: str
    relative: bool
    at_import_time: bool
    """Not inside a function and not for type checkers only."""

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]

    @property
    def room(self) -> str | None:
        parts = self.module.split(".")
        return parts[1] if parts[0] == "penstock" and len(parts) > 1 else None

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(room: str) -> list[Import]:
    """Every import of a room's files; `from package import name` counts as package.name where that may be a module."""
    return [
        found
        for file in sorted((ROOT / room).rglob("*.py"))
        for found in visit(ast.parse(file.read_text()), file, True)
    ]


def visit(node: ast.AST, file: Path, at_import_time: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(file, node.lineno, alias.name, False, at_import_time)
    elif isinstance(node, ast.ImportFrom):
        package = ["penstock", *file.relative_to(ROOT).parent.parts]
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        inside = origin in ("penstock", *(f"penstock.{room}" for room in ROOMS))
        for alias in node.names:
            module = f"{origin}.{alias.name}" if inside else origin
            yield Import(file, node.lineno, module, node.level > 0, at_import_time)
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
        yield from visit(child, file, at_import_time and not is_function and not for_types)


def complaints(wrong: list[Import]) -> list[str]:
    return [str(found) for found in wrong]


def test_the_visitor_sees_what_it_should(tmp_path: Path) -> None:
    source = (
        "import a.b\nfrom .x import y\nfrom ..kernels.z import q\nif TYPE_CHECKING:\n import t\ndef f():\n  import g\n"
    )
    file = ROOT / "serving" / "imaginary.py"
    seen = [(found.module, found.room, found.at_import_time) for found in visit(ast.parse(source), file, True)]
    assert seen == [
        ("a.b", None, True),
        ("penstock.serving.x", "serving", True),
        ("penstock.kernels.z", "kernels", True),
        ("t", None, False),
        ("g", None, False),
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_relative_inside_and_named_in_full_across(room: str) -> None:
    found = imports_of(room)
    assert found
    own = [i for i in found if i.room == room and not i.relative]
    foreign = [i for i in found if i.room != room and i.relative]
    # The bare names belong to others: Hugging Face has a library called kernels, PyPI one called scheduler.
    bare = [i for i in found if i.library in ROOMS]
    assert complaints(own + foreign + bare) == []


def test_serving_knows_only_the_engines_contract() -> None:
    found = imports_of("serving")
    rooms = [i for i in found if i.room not in (None, "serving", "scheduler")]
    beyond = [i for i in found if i.room == "scheduler" and i.module.split(".")[2] not in OPEN_TO_SERVING]
    libraries = [i for i in found if i.library in MODEL_LIBRARIES]
    assert complaints(rooms + beyond + libraries) == []


def test_the_protocol_needs_pydantic_alone() -> None:
    allowed = {"pydantic", "pydantic_core", *sys.stdlib_module_names}
    protocol = [i for i in imports_of("serving") if (ROOT / "serving" / "protocol") in i.file.parents]
    assert protocol
    outside = [
        i for i in protocol if i.library not in allowed and not f"{i.module}.".startswith("penstock.serving.protocol.")
    ]
    assert complaints(outside) == []


def test_the_engine_knows_neither_http_nor_the_front() -> None:
    found = imports_of("scheduler")
    wrong = [i for i in found if i.room == "serving" or i.library in WEB_LIBRARIES]
    wire = [i for i in found if i.library in ("zmq", "msgspec") and i.at_import_time and i.file.name != "worker.py"]
    assert complaints(wrong + wire) == []


def test_what_the_front_imports_of_the_engine_is_light() -> None:
    files = {ROOT / "scheduler" / f"{module}.py" for module in OPEN_TO_SERVING}
    found = [i for i in imports_of("scheduler") if i.file in files and i.at_import_time]
    allowed = {"penstock", *sys.stdlib_module_names}
    heavy = [i for i in found if i.library not in allowed or (i.room and i.module.split(".")[2] not in OPEN_TO_SERVING)]
    assert complaints(heavy) == []


def test_kernels_stand_on_torch_and_triton_alone() -> None:
    allowed = KERNEL_LIBRARIES | sys.stdlib_module_names
    wrong = [i for i in imports_of("kernels") if i.library not in allowed or i.room not in (None, "kernels")]
    assert complaints(wrong) == []


def test_kernels_and_penstock_are_namespaces() -> None:
    assert not list((ROOT / "kernels").rglob("__init__.py"))
    assert not (ROOT / "__init__.py").exists()


def test_the_engine_imports_without_the_servers_libraries() -> None:
    missing = sorted({"zmq", "msgspec", "orjson", "rich", *WEB_LIBRARIES})
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing!r}))\n"  # None there makes an import fail
        "import penstock.scheduler.engine\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
