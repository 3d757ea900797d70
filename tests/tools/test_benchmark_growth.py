from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from rednet.cli.command import run
from tools.benchmarks import benchmark_growth


def test_every_size_and_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("SHORTEST_TURN", 1e-9), ("COPIED_NUMBERS", 64), ("PRODUCT_SIDE", 8)):
        monkeypatch.setattr(f"timing.{name}", value)
    monkeypatch.setattr(benchmark_growth, "SIZES", {"side": (4, 8, 16), "threads": (1, 2, 4096)})
    out, picture = tmp_path / "growth.json", tmp_path / "new" / "growth.png"
    arguments = ["--channels", "16", "--side", "8", "--turns", "1", "--sizes", "side", "threads"]
    arguments += ["--out", str(out), "--picture", str(picture), "--threads", "2"]
    assert run(benchmark_growth.main, arguments) == 0
    results = json.loads(out.read_text())
    cases = [tuple(record["case"].values()) for record in results["records"]]
    assert cases == [(size, what) for size in ("side", "threads") for what in ("forward", "train")]
    sides, threads = results["records"][0]["points"], results["records"][2]["points"]
    assert [point["value"] for point in sides] == [4, 8, 16]
    assert [point["value"] for point in threads] == [1, 2]
    assert sides[1]["tensor_bytes"] == 4 * 8**2 * (16 + 49 + 16)
    assert all(point["milliseconds"] > 0 for point in sides)
    assert cv2.imread(str(picture)).shape[1] > 600
    assert "| side | 4 to 16 | forward |" in capsys.readouterr().out


def test_slope_is_of_the_larger_half() -> None:
    sizes = [1, 2, 4, 8]
    assert benchmark_growth.slope(sizes, [9, 2**2, 4**2, 8**2]) == pytest.approx(2)
    assert benchmark_growth.slope(sizes, [1, 2, 0, 4]) is None
    assert benchmark_growth.slope([5], [1]) is None
    assert benchmark_growth.slope([1, 2], [3, 6]) == pytest.approx(1)


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "file" / "growth.png"
    picture.parent.touch()
    assert run(benchmark_growth.main, ["--picture", str(picture)]) == 2
    assert "--picture" in capsys.readouterr().err
    assert run(benchmark_growth.main, ["--picture", str(tmp_path / "growth.txt")]) == 2
    assert "growth.txt must end in one of" in capsys.readouterr().err
