"""``python -m rednet``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def call(*arguments: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rednet", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_report() -> None:
    done = call()
    assert done.returncode == 0, done.stderr
    for part in ("rednet 0.", "torch 2.", "mmengine: ", "involution on ", "  reference: available"):
        assert part in done.stdout
    assert "mmcv's operators: " in done.stdout or "mmcv's operators:\n" in done.stdout


def test_a_program_runs_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, beside\nprint(sys.argv, __name__, 'rednet' in sys.modules, beside.NAME)\n"
        "raise SystemExit(3)"
    )
    done = call(program, "--out", "a", folder=tmp_path)
    assert done.stdout.strip() == f"['{program}', '--out', 'a'] __main__ True beside"
    assert done.returncode == 3


def test_a_program_that_is_not_there() -> None:
    done = call("none.py")
    assert (done.returncode, done.stderr) == (2, "error: none.py is not a file\n")
