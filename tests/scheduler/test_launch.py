"""Tools in processes of their own: their progress and their last words."""

from pathlib import Path

import pytest

from penstock.scheduler import launch
from penstock.scheduler.errors import ModelLoadError


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A module in place of a converter; call it with its source."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(source, progress=None):
        (tmp_path / "imaginary_tool.py").write_text(source)
        launch._run_tool("imaginary_tool", Path("a"), Path("b"), progress=progress)

    return run


def test_progress_is_told_while_the_tool_runs(tool, tmp_path):
    seen = []

    def note(stage, fraction):
        seen.append((stage, fraction))
        (tmp_path / "noted").touch()

    noted = f"pathlib.Path({str(tmp_path / 'noted')!r})"
    wait = f"import pathlib, time\nwhile not {noted}.exists(): time.sleep(0.01)\n"
    tool(f"print('PROGRESS 0.3 reading  metadata', flush=True)\n{wait}print('words'); print('PROGRESS 1.0 done')", note)
    assert seen == [("reading  metadata", 0.3), ("done", 1.0)]


def test_a_flood_on_standard_error_blocks_nobody(tool):
    tool("import sys\nfor _ in range(20_000): print('a long warning', file=sys.stderr)\nprint('PROGRESS 1 done')")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys; print('PROGRESS 0.1 x'); print('out'); print('a\\nb c', file=sys.stderr); sys.exit(1)", "b c"),
        ("import sys; print('out'); print('PROGRESS 0.1 x'); sys.exit(1)", "out"),
        ("import sys; sys.exit(3)", "imaginary_tool ended with status 3"),
    ],
)
def test_a_failure_has_the_tools_last_words(tool, source, words):
    with pytest.raises(ModelLoadError, match=f"^{words}$"):
        tool(source)


def test_a_tool_ends_when_its_caller_gives_up(tool):
    def give_up(stage, fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool("print('PROGRESS 0.1 x', flush=True)\nimport time\ntime.sleep(1000)", give_up)


def test_a_config_survives_the_command_line():
    config = launch.WorkerConfig(
        "ipc://x", launch.EngineConfig(block_size=32), (launch.ModelSpec("m", "/m", "generate"),), "info"
    )
    assert launch.load_config(launch.dump_config(config)) == config
