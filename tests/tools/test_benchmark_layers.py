from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rednet.cli.command import run
from tools.benchmarks import benchmark_layers
from tools.benchmarks.benchmark_layers import Clock
from tools.benchmarks.timing import Times

TINY = ("--shapes", "8,8,5,3,1", "--batches", "1", "--turns", "1", "--layers", "SPConv2d")


def test_layers_and_peers_beside_the_convolution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    peer = ["--peer", "SPConv2d=torch.nn:Conv2d"]
    assert run(benchmark_layers.main, [*TINY, *peer, "--out", str(out)]) == 0
    forward, train = json.loads(out.read_text())["records"]
    for record, mode in ((forward, "forward"), (train, "train")):
        assert record["case"]["mode"] == mode
        assert [*record["results"]] == ["nn.Conv2d", "SPConv2d", "SPConv2d by torch.nn:Conv2d"]
        assert record["results"]["nn.Conv2d"]["ratio"] == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| 8-8 @5 k3 s1 b1 train | SPConv2d |") for line in lines)
    ratios = [
        f"{record['results'][name]['ratio']:.2f}"
        for record in (forward, train)
        for name in ("SPConv2d", "SPConv2d by torch.nn:Conv2d")
    ]
    floor = forward["results"]["SPConv2d"]["floor"]
    own, peer, own_training, peer_training = ratios
    assert lines[-3] == "| layer | shape | forward, batch 1 | train, batch 1 | floor |"
    assert lines[-1] == (
        f"| SPConv2d | 8-8 @5 k3 s1 | {own} ({peer}) | {own_training} ({peer_training}) "
        f"| {floor:.2f} |"
    )


def test_frozen_norms_train_beside_the_faster_layout_of_the_convolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: dict[str, Callable[[], None]] = {}

    def interleaved(self: Clock, actions: dict[str, Callable[[], None]], turns: int) -> dict:
        timed.update(actions)
        milliseconds = iter((4.0, 8.0, 2.0))
        return {
            name: Times(value, value) for name, value in zip(actions, milliseconds, strict=True)
        }

    monkeypatch.setattr(Clock, "interleaved", interleaved)
    out = tmp_path / "results.json"
    arguments = ["--shapes", "8,8,9,3,1", *TINY[2:-1], "ACBlock", "--modes", "frozen"]
    assert run(benchmark_layers.main, [*arguments, "--out", str(out)]) == 0
    (record,) = json.loads(out.read_text())["records"]
    assert record["results"]["nn.Conv2d"]["milliseconds"] == 2
    assert record["results"]["ACBlock"]["ratio"] == 4
    assert record["results"]["ACBlock"]["floor"] == 1
    assert [*timed] == ["nn.Conv2d", "ACBlock", "nn.Conv2d in the other layout"]


def test_batches_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_layers.main(["--batches", "0"])
    assert "--batches: expected a number of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--layers", "Spconv"], ["--peer", "Spconv=torch.nn:Conv2d"]]
)
def test_a_layer_that_is_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(benchmark_layers.main, arguments) == 2
    assert "'Spconv' is not a registered layer" in capsys.readouterr().err
