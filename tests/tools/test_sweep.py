"""tools/benchmarks/sweep.py with trainings that only write what a training writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.visualization import LocalVisBackend

from rednet.cli.command import run

pytest.importorskip("mmpretrain")
from tools.benchmarks import sweep


def write_run(name: str, config: str, *arguments: str) -> None:
    """Stands in for tools/train.py and tools/test.py."""
    options = dict(text.split("=") for text in arguments if "=" in text)
    accuracy = 10 * float(options["lr"]) + int(options["randomness.seed"])
    folder = Path(arguments[arguments.index("--work-dir") + 1])
    if name == "test.py":
        assert arguments[0] == str(folder.parent / "epoch_2.pth")
        (folder / "1").mkdir(parents=True)
        (folder / "1/1.json").write_text(json.dumps({"accuracy/top1": accuracy + 1, "time": 0.1}))
        return
    if options["lr"] == "9":
        raise SystemExit(2)
    (folder / "last_checkpoint").write_text("elsewhere/epoch_2.pth")
    backend = LocalVisBackend(str(folder / "1/vis_data"))
    backend.add_scalars({"loss": 0.5, "lr": 0.1}, 1)
    backend.add_scalars({"accuracy/top1": accuracy, "data_time": 0.1}, 1)
    backend.add_scalars({"loss": 0.4, "lr": 0.1}, 2)


@pytest.fixture
def common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sweep, "_run_tool", write_run)
    return ["--results", str(tmp_path / "runs.jsonl"), "--work-dirs", str(tmp_path / "work")]


def test_it_runs_what_is_missing_and_shows_all(
    tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = ["small.py", *common, "--test", "--seeds", "0", "2", "--grid"]
    assert run(sweep.main, [*seeds, "lr=1"]) == 0
    first = (tmp_path / "runs.jsonl").read_text()
    capsys.readouterr()
    assert run(sweep.main, [*seeds, "lr=1,3"]) == 0
    shown = capsys.readouterr().out
    lines = [line.rpartition("|")[0].rpartition("|")[0] for line in shown.splitlines()]
    assert lines[2:] == [
        "| small | lr=1 | 2 | 11 ± 1.4 | 12 ± 1.4 ",
        "| small | lr=3 | 2 | 31 ± 1.4 | 32 ± 1.4 ",
    ]
    assert (tmp_path / "runs.jsonl").read_text().startswith(first)
    assert run(sweep.main, common) == 0
    assert capsys.readouterr().out == shown, "the table alone, of the same runs"


def test_a_run_that_fails_leaves_the_others(
    tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sweep.main, ["small.py", *common, "--grid", "lr=1,9"]) == 2
    assert "the run failed with status 2: see " in capsys.readouterr().err
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("grid", ["lr", "lr=", "=1"])
def test_a_grid_without_values(
    grid: str, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sweep.main, ["small.py", *common, "--grid", grid]) == 2
    assert f"--grid expects KEY=VALUE[,VALUE...], got '{grid}'" in capsys.readouterr().err


def test_a_file_of_something_else(
    tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.jsonl").write_text("{}\n")
    assert run(sweep.main, common) == 2
    assert "runs.jsonl: line 1 is not a run of this tool" in capsys.readouterr().err
