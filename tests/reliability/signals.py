"""Signals to whole ``tools/train.py`` processes, as a shell or Slurm sends them, and a resume.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/signals.py --runs 10

Each training leads a process group, with two data loader workers. The group gets SIGTERM,
SIGINT or SIGKILL at a random moment of the training. Then ``--resume`` lets it end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from forked_commands import ROOT, differing
from trainings import EPOCHS, KINDS, write

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
LAST = f"epoch_{EPOCHS}.pth"


def train(config: Path, work_dir: Path) -> subprocess.Popen:
    """Starts or resumes a training in a process group of its own."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(config), "--resume"]
    work_dir.parent.mkdir(exist_ok=True)
    with open(work_dir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [*command, "--work-dir", str(work_dir)],
            **dict(cwd=work_dir.parent, stdout=log, stderr=log, start_new_session=True),
        )


def interrupt(config: Path, work_dir: Path, number: signal.Signals) -> list[str] | None:
    """Signals a training after its first epoch; returns what is wrong, or None if it was done."""
    running = train(config, work_dir)
    log = work_dir.with_suffix(".log")
    while "Epoch(train)" not in log.read_text(errors="replace") and running.poll() is None:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    if running.poll() is not None:
        return None
    os.killpg(running.pid, number)
    begun = time.monotonic()
    code = running.wait()
    print(f"{number.name}: exit code {code} after {time.monotonic() - begun:.1f} s", flush=True)
    if code == 0:
        return None
    if number == signal.SIGKILL:
        return [] if code == -number else [f"exit code {code}"]
    text = log.read_text(errors="replace")
    problems = [] if code == 128 + number else [f"exit code {code}"]
    problems += ["a traceback"] if "Traceback" in text else []
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    problems += [f"{len(lines)} error lines"] if len(lines) > 1 else []
    return problems + ([] if (work_dir / "interrupted.pth").is_file() else ["no checkpoint"])


def main() -> None:
    """Prints a line for each run, and how many ended and resumed as they should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="rednet-signals-"))
    config = write(folder)[next(iter(KINDS))]
    whole = folder / "whole" / "run"
    if train(config, whole).wait():
        raise SystemExit(whole.with_suffix(".log").read_text())
    good = run = 0
    while run < args.runs:
        work_dir = Path(tempfile.mkdtemp(dir=folder), "run")
        problems = interrupt(config, work_dir, SIGNALS[run % len(SIGNALS)])
        if problems is None:
            continue
        run += 1
        code = train(config, work_dir).wait()
        problems += [f"exit code {code} of the resumed"] if code else []
        problems += differing(whole / LAST, work_dir / LAST)
        good += not problems
        print(f"run {run}: {problems[:3] or 'resumed bit for bit'}", flush=True)
    print(f"{good} of {args.runs}")


if __name__ == "__main__":
    main()
