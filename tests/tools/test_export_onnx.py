from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from rednet.cli.command import run
from tests.layers.cases import randomized
from tools.model_converters import export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TINY = dict(
    type="RedNet",
    depth=26,
    stem_channels=32,
    base_channels=16,
    num_stages=2,
    strides=(1, 2),
    dilations=(1, 2),
    out_indices=(0, 1),
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(f"custom_imports = dict(imports=['rednet'])\nmodel = {TINY!r}\n")
    return path


def _call(*arguments: str | Path) -> int:
    return run(export_onnx.main, [str(each) for each in arguments])


def test_onnxruntime_gives_the_trained_models_maps_for_any_image(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = randomized(MODELS.build(TINY)).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "trained.pth")
    file = tmp_path / "new" / "model.onnx"
    status = _call(config, tmp_path / "trained.pth", "--out", file, "--shape", "32", "48")
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "image: batch x 3 x height x width" in printed.out
    assert "on images of 2 x 3 x 49 x 33" in printed.out
    assert [each.name for each in file.parent.iterdir()] == ["model.onnx"]

    assert {node.domain for node in onnx.load(file).graph.node} == {""}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    image = torch.randn(2, 3, 65, 40)
    for actual, expected in zip(
        session.run(None, {"image": image.numpy()}), model(image), strict=True
    ):
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-5)


def test_the_size_can_be_fixed(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert _call(config, "--out", tmp_path / "m.onnx", "--shape", "16", "24", "--fixed-size") == 0
    printed = capsys.readouterr().out
    assert "image: batch x 3 x 16 x 24" in printed
    assert "the weights are random" in printed


def test_without_a_checkpoint_init_cfg_gives_the_weights(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = randomized(MODELS.build(TINY)).eval()
    state_dict = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state_dict}, tmp_path / "detector.pth")
    init_cfg = dict(
        type="Pretrained", checkpoint=str(tmp_path / "detector.pth"), prefix="backbone."
    )
    with config.open("a") as file:
        file.write(f"model['init_cfg'] = {init_cfg!r}\n")
    assert _call(config, "--out", tmp_path / "m.onnx", "--shape", "16", "--fixed-size") == 0
    assert "the weights are those that init_cfg names" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    image = torch.randn(1, 3, 16, 16)
    actual = session.run(None, {"image": image.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(actual), model(image)[0], rtol=1e-4, atol=1e-5)


def test_one_number_is_both_sides(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _call(config, "--out", tmp_path / "m.onnx", "--shape", "16", "--fixed-size") == 0
    assert "image: batch x 3 x 16 x 16" in capsys.readouterr().out


def test_a_wrong_output_is_not_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rednet.deploy.onnx.TOLERANCE", 1e-12)
    monkeypatch.setattr("rednet.deploy.onnx.ROUNDING_FACTOR", 0.0)
    assert _call(config, "--out", tmp_path / "m.onnx", "--shape", "16", "16") == 2
    assert "images of 1 x 3 x 16 x 16 is off by" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_a_place_that_cannot_be_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _call(config, "--out", tmp_path) == 2
    assert f"error: --out {tmp_path} must be a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default_scope = 'mmdet'\nmodel = dict(type='RetinaNet')", "this RetinaNet, are not"),
        ("a = 1", "the config has no model"),
    ],
)
def test_what_cannot_be_exported_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str, message: str
) -> None:
    (tmp_path / "config.py").write_text(text)
    assert _call(tmp_path / "config.py", "--out", tmp_path / "m.onnx") == 2
    assert message in capsys.readouterr().err
