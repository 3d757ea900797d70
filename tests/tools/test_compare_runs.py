"""tools/analysis_tools/compare_runs.py on scalars as mmengine's LocalVisBackend writes them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.visualization import LocalVisBackend

from rednet.cli.command import run
from tools.analysis_tools import compare_runs


def write_run(folder: Path, offset: float, steps: range = range(1, 5), time: str = "1") -> Path:
    backend = LocalVisBackend(str(folder / time / "vis_data"))
    for step in steps:
        backend.add_scalars(dict(loss=offset + 1 / step, lr=0.1, time=3.0), step)
        backend.add_scalars({"accuracy/top1": 50 + offset * step}, step)
    return folder


def test_seeds_become_a_mean_and_a_band(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [write_run(tmp_path / f"a{seed}", seed) for seed in (0, 2)]
    single = write_run(tmp_path / "b", 5)
    out = tmp_path / "curves.png"
    runs = [f"a={pairs[0]},{pairs[1]}", str(single)]
    assert run(compare_runs.main, [*runs, "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| run | runs | loss | accuracy/top1 |",
        "|---|---|---|---|",
        "| a | 2 | 1.25 ± 1.4 | 54 ± 5.7 |",
        "| b | 1 | 5.25 | 70 |",
        str(out),
    ]
    assert len(np.unique(cv2.imread(str(out)))) > 50


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    write_run(tmp_path, 0, range(1, 4), "1")
    write_run(tmp_path, 1, range(3, 6), "2")
    losses = compare_runs.read_scalars(tmp_path)["loss"]
    assert losses == pytest.approx({1: 1, 2: 0.5, 3: 1 + 1 / 3, 4: 1.25, 5: 1.2})


def test_a_run_that_was_killed_while_it_wrote(tmp_path: Path) -> None:
    write_run(tmp_path, 0)
    with (tmp_path / "1/vis_data/scalars.json").open("a") as file:
        file.write('{"loss": 3')
    assert len(compare_runs.read_scalars(tmp_path)["loss"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/missing"], "missing holds no scalars of a run"),
        (["{0}/a", "--keys", "mAP"], "--keys match none of the runs' scalars: loss, accuracy/top1"),
        (["{0}/a", "--keys", "("], "--keys must be regular expressions: "),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", 0)
    filled = [each.format(tmp_path) for each in arguments]
    assert run(compare_runs.main, [*filled, "--out", str(tmp_path / "c.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "c.png").exists()
