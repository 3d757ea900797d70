from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

pytest.importorskip("mmdet", reason="detectors need mmdet")
pytest.importorskip("mmpretrain", reason="classifiers need mmpretrain")

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = str(ROOT / "configs/demo/faster-rcnn_rednet26_digits.py")
CLASSIFIER = str(ROOT / "configs/demo/rednet26_digits.py")


def benchmark(*arguments: str) -> None:
    path = ROOT / "tools/benchmark_model.py"
    spec = importlib.util.spec_from_file_location("benchmark_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with DefaultScope.overwrite_default_scope("mmdet"):
        module.main([*arguments, "--repeats", "2", "--shape", "32", "48"])


@pytest.mark.parametrize("mode", [[], ["--train", "--batch-size", "2"]])
@pytest.mark.parametrize("config", [DETECTOR, CLASSIFIER])
def test_time_and_memory_of_a_model(
    config: str, mode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    benchmark(config, *mode, "--out", str(out))
    assert f"| {Path(config).stem} |" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert row["ms"] >= row["best_ms"] > 0
    assert row["mib"] is None or row["mib"] >= 0


def test_several_models_are_compared_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark(DETECTOR, str(ROOT / "configs/demo/faster-rcnn_resnet18_digits.py"))
    first, second = capsys.readouterr().out.strip().splitlines()[-2:]
    assert first.split(" | ")[3] == "1.00" and "resnet18" in second


def test_a_number_below_one_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark(DETECTOR, "--batch-size", "0")
    assert "--batch-size must be at least 1" in capsys.readouterr().err
