"""tools/predict.py on pictures, with weights that nothing has trained."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import save_checkpoint

pytest.importorskip("mmpretrain")

from rednet.cli.command import run
from rednet.cli.model import build_model, with_preprocessor
from rednet.datasets import Digits
from tools import predict

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/demo/rednet26_digits.py")
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    digits = Digits(split="val")
    paths = [folder / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        path.write_bytes(cv2.imencode(".png", digits[index]["img"])[1].tobytes())
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(with_preprocessor(Config.fromfile(CONFIG))).eval()


@pytest.fixture(scope="module")
def checkpoint(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "weights.pth"
    meta = dict(dataset_meta=dict(classes=CLASSES))
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), str(path))
    return str(path)


def test_the_class_is_that_of_the_highest_score(
    model: torch.nn.Module,
    checkpoint: str,
    pictures: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(predict.main, [CONFIG, checkpoint, *pictures, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()[-len(pictures) :]
    results = json.loads((out / "predictions.json").read_text())
    assert list(results) == pictures
    for path, line in zip(pictures, lines, strict=True):
        picture = cv2.imread(path)
        image = torch.from_numpy(cv2.resize(picture, (32, 32)).astype(np.float32) / 127.5 - 1)
        with torch.no_grad():
            scores = model.head.predict(model.extract_feat(image.permute(2, 0, 1)[None]))[0]
        best = int(scores.pred_label)
        assert results[path]["name"] == CLASSES[best]
        assert results[path]["score"] == pytest.approx(float(scores.pred_score[best]), rel=1e-4)
        assert line == f"{path}: {CLASSES[best]} ({results[path]['score']:.2f})"
        drawn = cv2.imread(str(out / Path(path).name))
        assert drawn.shape == picture.shape and (drawn != picture).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{missing}"], "cannot read image"),
        (["{text}"], "its content is not an image"),
        (["{picture}", "{picture}", "--out", "{out}"], "two images named"),
        (["{picture}", "--out", "{folder}"], "would replace a file that is read"),
        (["{picture}", "--cfg-options", "default_scope=mmocr"], "default_scope must be one of"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    checkpoint: str,
    pictures: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    places = dict(missing=tmp_path / "no.png", text=text, picture=pictures[0], out=tmp_path / "out")
    places["folder"] = Path(pictures[0]).parent
    filled = [argument.format(**places) for argument in arguments]
    assert run(predict.main, [CONFIG, checkpoint, *filled]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_of_another_model_are_refused(
    pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.pth"
    save_checkpoint(dict(state_dict=torch.nn.Linear(2, 2).state_dict()), str(path))
    assert run(predict.main, [CONFIG, str(path), *pictures]) == 2
    assert "does not fit the config" in capsys.readouterr().err


def test_detections_are_those_of_mmdet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mmdet")
    apis = pytest.importorskip("mmdet.apis")
    config = str(ROOT / "configs/demo/faster-rcnn_rednet26_digits.py")
    torch.manual_seed(0)
    detector = build_model(Config.fromfile(config))
    weights, picture, out = (str(tmp_path / name) for name in ("w.pth", "scene.jpg", "out"))
    meta = dict(dataset_meta=dict(classes=CLASSES, palette="random"))
    save_checkpoint(dict(meta=meta, state_dict=detector.state_dict()), weights)
    scene = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Path(picture).write_bytes(cv2.imencode(".png", scene)[1].tobytes())

    command = [config, weights, picture, "--out", out, "--score-threshold", "0.05"]
    assert run(predict.main, command) == 0
    expected = apis.inference_detector(apis.init_detector(config, weights, device="cpu"), picture)
    found = expected.pred_instances[expected.pred_instances.scores >= 0.05]
    [result] = json.loads(Path(out, "predictions.json").read_text()).values()
    assert len(found) == len(result) > 0
    torch.testing.assert_close(torch.tensor([each["box"] for each in result]), found.bboxes)
    assert [each["name"] for each in result] == [CLASSES[label] for label in found.labels]
    assert Path(out, "scene.jpg").is_file()
