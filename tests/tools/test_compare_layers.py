from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rednet.cli.command import run
from tools.benchmarks import compare_layers

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
pytest.importorskip("matplotlib")

TINY = ("--layers", "nn.Conv2d", "ODConv2d", "--images", "2", "--steps", "2", "--seeds", "1")


def test_it_trains_what_is_missing_times_all_and_shows_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = compare_layers._load()
    monkeypatch.setattr(compare_layers, "_load", lambda: (images[:200], labels[:200]))
    arguments = [*TINY, "--out", str(tmp_path)]
    assert run(compare_layers.main, arguments) == 0
    assert "nn.Conv2d seed 0: " in capsys.readouterr().out
    result = json.loads((tmp_path / "ODConv2d.json").read_text())
    assert 0 <= result["accuracies"][0] <= 100 and result["cooling"] == 0.5
    monkeypatch.setattr(compare_layers, "TURNS", 1)
    # Timing needs the layers only: the budget is that of the trainings that are there.
    timing = ["--layers", "nn.Conv2d", "ODConv2d", "--out", str(tmp_path), "--time"]
    assert run(compare_layers.main, timing) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("seed" in line for line in lines), "a second run trained again"
    assert (tmp_path / "table.md").read_text().splitlines() == lines[: len(lines) - 1]
    assert lines[2].startswith("| nn.Conv2d | ") and "38,378" in lines[2]
    assert "not timed" not in lines[3]
    assert (tmp_path / "comparison.png").stat().st_size > 0
    assert run(compare_layers.main, [*arguments, "--steps", "3"]) == 2
    error = capsys.readouterr().err
    assert "Give another --out, or train all with --overwrite" in error and error.count("\n") == 1
    some = ["--layers", "nn.Conv2d", *arguments[3:], "--steps", "3", "--overwrite"]
    assert run(compare_layers.main, some) == 2, "ODConv2d would stay as it is"
    assert run(compare_layers.main, [*arguments, "--steps", "3", "--overwrite"]) == 0


def test_a_seed_gives_every_network_the_same_images() -> None:
    data = compare_layers._load()
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    (train, test), again = (compare_layers._split(data, 3, each) for each in generators)
    assert len(train[1]) == 30 and len(train[1]) + len(test[1]) == 1797
    assert train[1].bincount().tolist() == [3] * 10
    assert torch.equal(train[0], again[0][0])


def test_a_layer_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(compare_layers.main, ["--layers", "Conv", "--out", str(tmp_path)]) == 2
    assert "--layers must be among nn.Conv2d, ACBlock" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seeds", "--images", "--steps", "--threads"])
def test_numbers_are_at_least_1(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare_layers.main([option, "0"])
    assert f"{option}: expected a number of at least 1, got '0'" in capsys.readouterr().err
