from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import run_gpu

from rednet.errors import UserError


def _jobs(sizes: run_gpu.Sizes, *arguments: str) -> list[run_gpu.Job]:
    args = run_gpu._parse(["results", *arguments])
    return [job for step in run_gpu.STEPS.values() for job in step(sizes, args)]


@pytest.mark.parametrize("sizes", [run_gpu.GPU, run_gpu.REHEARSAL], ids=["GPU", "rehearsal"])
def test_jobs_have_names_of_their_own_and_run_what_exists(sizes: run_gpu.Sizes) -> None:
    pytest.importorskip("mmdet")
    jobs = _jobs(sizes, "--published", "published.py")
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        files = [part for part in job.command if part.endswith(".py") and part != "published.py"]
        assert all((run_gpu.ROOT / file).exists() for file in files), job


def test_a_job_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(*_: Any) -> list[run_gpu.Job]:
        python = (sys.executable, "-S", "-c")
        return [
            run_gpu.Job("fails", (*python, "print('so far'); raise SystemExit(3)")),
            run_gpu.Job("absent", ("no-such-program",)),
            run_gpu.Job(
                "writes",
                (*python, "import os; open('{out}', 'w').write(os.environ['A'])"),
                {"A": "b"},
            ),
        ]

    monkeypatch.setitem(run_gpu.STEPS, "truth", step)
    arguments = [str(tmp_path), "--rehearse", "--steps", "truth"]
    with pytest.raises(UserError, match="2 of 3 jobs did not end well: fails, absent"):
        run_gpu.main(arguments)
    ends = {
        each["job"]: each["ended"]
        for each in json.loads((tmp_path / "jobs.json").read_text())["records"]
    }
    assert ends == {
        "fails": "with exit code 3",
        "absent": "no-such-program is not installed",
        "writes": "well",
    }
    assert (tmp_path / "fails.log").read_text().endswith("so far\n")
    assert (tmp_path / "writes").read_text() == "b"
    assert "| writes | well |" in capsys.readouterr().out


def test_a_job_that_lasts_is_killed(tmp_path: Path) -> None:
    job = run_gpu.Job("lasts", (sys.executable, "-S", "-c", "import time; time.sleep(60)"))
    assert run_gpu._run(job, tmp_path, limit=0.1)["ended"] == "after 0 s, killed"


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device; --rehearse"):
        run_gpu.main([str(tmp_path)])
