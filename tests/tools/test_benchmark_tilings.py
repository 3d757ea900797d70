from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rednet.cli.command import run
from rednet.ops.cuda import compiler
from rednet.ops.cuda.plan import Launch, plan
from tools.benchmarks import benchmark_tilings
from tools.benchmarks.benchmark_tilings import rank_correlation


def test_every_candidate_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launches: list[Launch] = []

    def compile_kernel(specialization: object, device: torch.device) -> object:
        return lambda launch, arguments, device: launches.append(launch)

    monkeypatch.setattr(compiler, "compile_with_cupy", compile_kernel)
    monkeypatch.setattr("timing.SHORTEST_TURN", 1e-9)
    out = tmp_path / "tilings.json"
    arguments = ["--shapes", "32,14,7,1", "--batch-size", "2", "--turns", "1", "--out", str(out)]
    assert run(benchmark_tilings.main, [*arguments, "--channels-last"]) == 0
    records = json.loads(out.read_text())["records"]
    assert [each["case"]["operation"] for each in records] == [
        "forward",
        "grad_input",
        "grad_weight",
    ]
    for record in records:
        costs = [each["cost"] for each in record["tilings"]]
        assert len(costs) > 1 and costs == sorted(costs)
    shown = {(launch.specialization.operation, launch.blocks) for launch in launches}
    assert len(shown) > len(records)
    assert "| 32x14 K=7 grad_weight |" in capsys.readouterr().out


def test_the_chosen_one_comes_first() -> None:
    args = benchmark_tilings._parse(["--shapes", "32,14,7,1", "--batch-size", "2"])
    call = benchmark_tilings.call_of(args.shapes[0], "forward", args)
    best, *_ = sorted(benchmark_tilings.candidates(call), key=benchmark_tilings.Tiling.cost)
    assert best.launch().blocks == plan(call).blocks


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 5], [10, 11, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 5], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([4], [4]) == 1
