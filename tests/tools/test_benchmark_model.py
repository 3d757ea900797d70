from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

from rednet.cli.command import run
from tools.benchmarks import benchmark_model

pytest.importorskip("mmdet", reason="detectors need mmdet")
pytest.importorskip("mmpretrain", reason="classifiers need mmpretrain")

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = str(ROOT / "configs/demo/faster-rcnn_rednet26_digits.py")
CLASSIFIER = str(ROOT / "configs/demo/rednet26_digits.py")


def benchmark(*arguments: str) -> int:
    with DefaultScope.overwrite_default_scope("mmdet"):
        return run(benchmark_model.main, [*arguments, "--turns", "1", "--shape", "32", "48"])


@pytest.mark.parametrize("mode", [[], ["--train", "--batch-size", "2"]])
@pytest.mark.parametrize("config", [DETECTOR, CLASSIFIER])
def test_time_and_memory_of_a_model(
    config: str, mode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    assert benchmark(config, *mode, "--out", str(out)) == 0
    assert f"| {Path(config).stem} |" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["records"]
    assert row["milliseconds"] >= row["best_milliseconds"] > 0
    assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
    assert (row["saved_bytes"] or 0) > 0 if mode else row["saved_bytes"] is None


def test_batch_norms_are_folded(capsys: pytest.CaptureFixture[str]) -> None:
    peer = "torchvision.models:resnet18"
    assert benchmark(CLASSIFIER, "--peer", peer, "--deploy") == 0
    assert "inference, plain, deployed, " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark(CLASSIFIER, "--deploy", "--train")


def test_several_models_are_compared_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(DETECTOR, str(ROOT / "configs/demo/faster-rcnn_resnet18_digits.py")) == 0
    first, second = capsys.readouterr().out.strip().splitlines()[-2:]
    assert first.split(" | ")[3] == "1.00" and "resnet18" in second


@pytest.mark.parametrize("mode", [[], ["--train", "--batch-size", "2"]])
def test_a_plain_classifier_beside_a_module_of_the_users(
    mode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = tmp_path / "peer.py"
    peer.write_text(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    assert benchmark(CLASSIFIER, "--peer", f"{peer}:tiny", "--amp", "--channels-last", *mode) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert "plain" in lines[1] and "bfloat16, channels_last" in lines[1]
    assert lines[-2].startswith("| peer:tiny |") and lines[-1].startswith("| rednet26_digits |")


def test_the_exported_model_in_onnx_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert benchmark(CLASSIFIER, "--onnx", "--threads", "1") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert "onnxruntime" in lines[0] and "plain, ONNX Runtime, batch 1" in lines[1]
    assert lines[-1].startswith("| rednet26_digits |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--onnx", "--train"], "--onnx times inference"),
        (["--custom-operator", "lib.so"], "--custom-operator needs --onnx"),
    ],
)
def test_options_that_do_not_fit_each_other(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark(CLASSIFIER, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DETECTOR, "--plain"], "for classifiers"),
        ([DETECTOR, "--amp"], "NMS takes no bfloat16"),
        ([CLASSIFIER, "--peer", "torch.nn"], "FILE.py:NAME or MODULE:NAME"),
    ],
)
def test_what_cannot_be_timed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_number_below_one_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark(DETECTOR, "--batch-size", "0")
    assert "--batch-size: expected a number of at least 1" in capsys.readouterr().err
