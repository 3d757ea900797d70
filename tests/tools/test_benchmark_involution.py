from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timing import Rates

from rednet.cli.command import run
from rednet.ops import backends, involution2d
from tools.benchmarks import benchmark_involution
from tools.benchmarks.involution_cases import PASSES, Contender, work_of

TINY = ("--shapes", "16,5,3,1", "--batch-size", "2", "--turns", "1")


@pytest.fixture(autouse=True)
def no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of this machine take a second to measure."""
    monkeypatch.setattr(benchmark_involution, "measure_rates", lambda *_: Rates(1e9, 1e9))


def test_every_pass_of_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer, out = tmp_path / "peer.py", tmp_path / "results.json"
    peer.write_text("from rednet.ops import involution2d as involution\n")
    arguments = ["--group-channels", "8", "--channels-last", "--peer", str(peer)]
    assert run(benchmark_involution.main, [*TINY, *arguments, "--out", str(out)]) == 0
    records = json.loads(out.read_text())["records"]
    assert [record["case"]["pass"] for record in records] == [*PASSES]
    for record in records:
        assert {"3x3 convolution", "reference", "shifted", "peer:involution"} <= {
            *record["results"]
        }
        for result in record["results"].values():
            assert result["milliseconds"] > 0 and result["share_of_floor"] > 0
    assert "| 2x16x5x5 K=3 s=1 grad_weight | shifted |" in capsys.readouterr().out


def test_a_peer_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = tmp_path / "peer.py"
    peer.write_text("def broken(input, weight, **window):\n    raise RuntimeError('no GPU')\n")
    arguments = [*TINY, "--peer", f"{peer}:broken", "--passes", "forward", "--group-channels", "8"]
    assert run(benchmark_involution.main, arguments) == 0
    captured = capsys.readouterr()
    assert "peer:broken cannot compute forward: no GPU" in captured.err
    assert "broken" not in captured.out


@pytest.mark.parametrize("what", PASSES)
def test_the_forced_backend_computes_the_gradients_too(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    reference = backends._BACKENDS["reference"]

    def recorded(kernel: str) -> backends.Kernel:
        def run(*args: Any) -> None:
            called.append(kernel)
            getattr(reference, kernel)(*args)

        return run

    recording = replace(reference, **{kernel: recorded(kernel) for kernel in PASSES[:3]})
    monkeypatch.setitem(backends._BACKENDS, "reference", recording)
    input, weight = torch.randn(1, 2, 3, 3), torch.randn(1, 1, 1, 1, 3, 3)
    action = Contender(involution2d, input, weight, 1, "reference").action(what, input)
    called.clear()
    action()
    assert sorted(called) == (sorted(PASSES[:3]) if what == "train" else [what])


def test_the_least_work() -> None:
    input, weight = torch.zeros(1, 16, 4, 4), torch.zeros(1, 1, 3, 3, 4, 4)
    contender = Contender(involution2d, input, weight, multiply_adds=16 * 16 * 9)
    forward, *gradients, train = (work_of(what, contender, input) for what in PASSES)
    assert forward.moved_bytes == 4 * (16 + 9 + 16) * 16
    assert forward.multiply_adds == 16 * 16 * 9
    assert {each.moved_bytes for each in gradients} == {forward.moved_bytes}
    assert train.moved_bytes == 4 * (16 + 9 + 16 + 16 + 2 * (16 + 9)) * 16
    assert train.operand_bytes + train.result_bytes == 2 * forward.moved_bytes


@pytest.mark.parametrize("shape", ["16,5,4,1", "16,5,3", "16,0,3,1"])
def test_shapes_that_are_none(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_involution.main(["--shapes", shape])
    assert repr(shape) in capsys.readouterr().err


def test_groups_that_do_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(benchmark_involution.main, ["--shapes", "16,5,3,1", "--group-channels", "5"]) == 2
    assert "--group-channels 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nonsense", "there is no such backend"), ("cuda", "it supports CUDA tensors")],
)
def test_backends_that_do_not_serve(
    name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(benchmark_involution.main, [*TINY, "--backends", name]) == 2
    message = capsys.readouterr().err
    assert f"--backends {name}: {reason}" in message and "shifted, reference" in message
