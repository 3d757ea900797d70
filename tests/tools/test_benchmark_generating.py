from __future__ import annotations

import json
from pathlib import Path

import pytest
from timing import Rates

from rednet.cli.command import run
from rednet.ops.triton import backend
from tools.benchmarks import benchmark_generating


def test_the_floors_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--batch-size", "64", "--bandwidth", "4300"]
    assert run(benchmark_generating.main, arguments) == 0
    assert "2 steps | 0.801 | 3,444 |\n| floor, 1 step | 0.271 | 1,165 |" in capsys.readouterr().out


def test_backends_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_generating, "measure_rates", lambda *_: Rates(1e9, 1e9))
    monkeypatch.setattr("timing.SHORTEST_TURN", 1e-9)
    out = tmp_path / "results.json"
    arguments = ["--depth", "26", "--side", "32", "--batch-size", "1", "--turns", "1"]
    arguments += ["--backends", "shifted", "reference", "--out", str(out)]
    assert run(benchmark_generating.main, arguments) == 0
    results = json.loads(out.read_text())
    assert results["machine"]["1 step"]["bytes"] < results["machine"]["2 steps"]["bytes"]
    assert {each["backend"] for each in results["records"]} == {"shifted", "reference"}
    shown = capsys.readouterr().out
    assert "| 64x8x8 K=7 s=1 | 1 | shifted | 2 |" in shown
    assert "| 64x8x8 K=7 s=1 | 1 | reference | 1 |" in shown


def test_a_backend_that_does_not_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(benchmark_generating.main, ["--backends", "triton-fused"]) == 2
    assert "--backends triton-fused: it supports CUDA tensors only" in capsys.readouterr().err


@pytest.mark.parametrize("tile", ["64", "64x8", "48x16", "axb"])
def test_tiles_that_are_none(tile: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_generating.main(["--tiles", tile])
    assert repr(tile) in capsys.readouterr().err


def test_tiles_are_the_triton_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(benchmark_generating.main, ["--tiles", "64x32"]) == 2
    assert "triton-fused: it supports CUDA tensors only" in capsys.readouterr().err
    before = backend.TILE_PIXELS, backend.TILE_REDUCED
    with benchmark_generating.tiled(benchmark_generating.parse_tile("64x32")):
        assert (backend.TILE_PIXELS, backend.TILE_REDUCED) == (64, 32)
    assert before == (backend.TILE_PIXELS, backend.TILE_REDUCED)
