"""The log file: the server's lines and its worker's, in one file of bounded size."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.serving.server_log import log_file, logging_to


def test_the_file_has_the_servers_lines_and_the_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = log_file(tmp_path, 1234)
    logging.getLogger().setLevel(logging.WARNING)
    with logging_to(file) as stream:
        logging.getLogger("penstock.x").warning("one")
        code = "import sys; print('two', file=sys.stderr); sys.stderr.buffer.write(b'\\xff')"
        subprocess.run([sys.executable, "-c", code], stderr=stream, check=True)
    logging.getLogger().warning("behind the end")
    first, second, third = file.read_text(encoding="utf-8").splitlines()
    assert first.endswith(" server WARNING one")
    assert (second, third) == ("two", "\N{REPLACEMENT CHARACTER}")
    assert capsys.readouterr().err.startswith("two\n")


def test_a_file_that_grows_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.serving.server_log._MAX_BYTES", 100)
    file = log_file(tmp_path, 1)
    with logging_to(file):
        for number in range(50):
            logging.getLogger().error("a line of some length %d", number)
    assert len(list(file.parent.iterdir())) == 4
    assert all(old.stat().st_size <= 100 for old in file.parent.iterdir())
