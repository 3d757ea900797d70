"""Images of any number of channels, configs without a default scope, and backbones of detectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.model import build_model, scope_of
from tools.analysis_tools import get_flops
from tools.benchmarks import benchmark_model
from tools.model_converters import export_onnx, switch_to_deploy

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(ROOT / "configs" / "demo" / "rednet26_digits.py")
DETECTOR = str(ROOT / "configs" / "demo" / "faster-rcnn_rednet26_digits.py")

pytest.importorskip("mmpretrain")


def options(channels: int) -> list[str]:
    values = ",".join(["100.0"] * channels)
    return [
        "--cfg-options",
        f"model.backbone.in_channels={channels}",
        f"data_preprocessor.mean=[{values}]",
        f"data_preprocessor.std=[{values}]",
        "data_preprocessor.to_rgb=False",
    ]


@pytest.fixture(params=[1, 5])
def channels(request: pytest.FixtureRequest) -> int:
    return request.param


def test_flops(channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(get_flops.main, [DIGITS, "--shape", "32", *options(channels)]) == 0
    assert f"input 1 x {channels} x 32 x 32" in capsys.readouterr().out


def test_times(channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [DIGITS, "--shape", "32", "32", "--turns", "1", "--plain", *options(channels)]
    assert run(benchmark_model.main, arguments) == 0
    assert "rednet26_digits" in capsys.readouterr().out


def test_export_and_deployment(channels: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    config, _ = read_config(DIGITS, {"model.backbone.in_channels": channels})
    model = build_model(config)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "a.pth")
    size = ["--shape", "32", "32"]
    out = ["--out", str(tmp_path / "a.onnx")]
    arguments = [DIGITS, str(tmp_path / "a.pth"), *size]
    assert run(export_onnx.main, [*arguments, *out, *options(channels)]) == 0
    files = [DIGITS, str(tmp_path / "a.pth"), str(tmp_path / "fused"), *size]
    assert run(switch_to_deploy.main, [*files, *options(channels)]) == 0


# ---- no default scope


def test_the_models_type_tells_the_scope(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mmdet")
    config = Config.fromfile(DETECTOR)
    config.default_scope = None
    config.model = {**config.model, "type": "mmdet.FasterRCNN"}
    assert scope_of(config) == "mmdet"
    config.dump(tmp_path / "none.py")
    capsys.readouterr()
    assert run(get_flops.main, [str(tmp_path / "none.py"), "--shape", "64"]) == 0
    assert "input 1 x 3 x 64 x 64" in capsys.readouterr().out
    from mmpretrain.models import ImageClassifier

    assert scope_of(Config(dict(default_scope=None, model=dict(type=ImageClassifier)))) == (
        "mmpretrain"
    )
    assert scope_of(Config(dict(model=dict(type="ResNet")))) is None
    for wrapper in ("Deployed", "SwapConv"):
        wrapped = dict(type=wrapper, module=dict(type=ImageClassifier))
        assert scope_of(Config(dict(default_scope=None, model=wrapped))) == "mmpretrain"


# ---- the backbone of a detector


def test_the_backbone_of_a_detector_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("mmdet")
    config, _ = read_config(DETECTOR)
    model = build_model(config)
    checkpoint, target = tmp_path / "detector.pth", tmp_path / "backbone.onnx"
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    arguments = [DETECTOR, str(checkpoint), "--shape", "64", "64", "--out", str(target)]
    assert run(export_onnx.main, [*arguments, "--backbone"]) == 0
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.backbone.eval()(image)
    actual = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    assert run(export_onnx.main, arguments) == 2
    assert "--backbone exports the backbone" in capsys.readouterr().err
