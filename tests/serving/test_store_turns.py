"""Locks on conversations between processes that use the same home."""

import subprocess
import sys
from pathlib import Path

from penstock.serving.store.turns import TurnLocks

OTHER = """
import sys
from pathlib import Path
from penstock.serving.store.turns import TurnLocks
locks = TurnLocks(Path(sys.argv[1]))
print([locks.take(principal, "c") for principal in ("a", "b")])
"""


def in_another_process(path: Path) -> str:
    return subprocess.run([sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True, check=True).stdout


def test_a_conversation_is_locked_for_other_processes_until_its_turn_ends(tmp_path: Path) -> None:
    path = tmp_path / "home" / "turns.lock"
    locks = TurnLocks(path)
    assert locks.take("a", "c")
    assert in_another_process(path).strip() == "[False, True]"
    locks.release("a", "c")
    assert in_another_process(path).strip() == "[True, True]", "a process that ends leaves no lock behind"
    assert path.stat().st_size == 0
