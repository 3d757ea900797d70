"""tools/train.py and tools/test.py on a tiny image folder, and all that can be given wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

pytest.importorskip("mmpretrain")

from rednet.checkpoint.reading import allow_log_types, can_name_types
from rednet.cli.command import run
from tests.image_folder import CLASSES, write_image_folder
from tools import test as evaluate
from tools import train

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "rednet50_imagenet.py"
SMALL = {
    "model.backbone.depth": 26,
    "model.backbone.stem_channels": 32,
    "model.backbone.base_channels": 16,
    "model.head.in_channels": 512,
    "model.head.num_classes": 3,
    "train_cfg.max_epochs": 1,
    "train_dataloader.batch_size": 6,
    "train_dataloader.num_workers": 0,
    "val_dataloader.num_workers": 0,
    "test_dataloader.num_workers": 0,
    "train_dataloader.dataset.pipeline.1.scale": 32,
    "val_dataloader.dataset.pipeline.2.crop_size": 32,
    "test_dataloader.dataset.pipeline.2.crop_size": 32,
    "default_hooks.checkpoint.save_best": None,
}


def options(**changes: object) -> list[str]:
    """``--cfg-options`` of the small model; dots in the names are written as two underscores."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return ["--cfg-options", *(f"{key}={value}" for key, value in {**SMALL, **changed}.items())]


def data(folder: Path) -> dict[str, object]:
    return dict(train_dataloader__dataset__data_root=folder)


def log_of(work_dir: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of one epoch, asked to resume where there is nothing yet."""
    work_dir = tmp_path_factory.mktemp("work")
    flags = ["--work-dir", str(work_dir), "--resume", "--auto-scale-lr"]
    assert run(train.main, [str(CONFIG), *flags, *options(**data(folder))]) == 0
    return work_dir


def test_an_image_folder_trains_with_validation(trained: Path, folder: Path) -> None:
    assert (trained / "epoch_1.pth").is_file()
    assert (trained / "training_curve.png").is_file()
    log = log_of(trained)
    assert "Epoch(val) [1][1/1]    accuracy/top1:" in log
    assert f"val_dataloader: data_root is {folder} too, in place of data/imagenet" in log
    assert "val_evaluator: topk is (1,), since the model has 3 classes" in log
    assert f"--resume: no checkpoint in {trained}, training starts from scratch" in log


def test_it_resumes_and_is_evaluated(trained: Path, folder: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    shutil.copytree(trained, work_dir)
    (work_dir / "last_checkpoint").write_bytes(b"\xff")
    (work_dir / "epoch_7.pth").write_bytes((work_dir / "epoch_1.pth").read_bytes()[:-100])
    more = options(train_cfg__max_epochs=2, **data(folder))
    assert run(train.main, [str(CONFIG), "--work-dir", str(work_dir), "--resume", *more]) == 0
    log = log_of(work_dir)
    assert "resumed epoch: 1, iter: 2" in log
    assert f"--resume passes over a file: the checkpoint {work_dir}/epoch_7.pth" in log
    assert "meant for batches of 2048, these are of 6: --auto-scale-lr scales it" in log
    allow_log_types()
    checkpoint = torch.load(work_dir / "epoch_2.pth", weights_only=can_name_types())
    assert checkpoint["optimizer"]["param_groups"][0]["initial_lr"] == pytest.approx(0.8 * 6 / 2048)
    assert len(checkpoint["message_hub"]["log_scalars"]["train/loss"].data[0]) == 4

    command = [str(CONFIG), str(work_dir / "epoch_2.pth"), "--work-dir", str(tmp_path / "test")]
    metrics, pictures = tmp_path / "metrics.json", tmp_path / "pictures"
    flags = ["--out", str(metrics), "--show-dir", str(pictures)]
    assert run(evaluate.main, [*command, *flags, *more]) == 0
    assert set(json.loads(metrics.read_text())) == {"accuracy/top1"}
    assert len(list(pictures.iterdir())) == 6
    predictions = tmp_path / "predictions.pkl"
    assert run(evaluate.main, [*command, "--tta", "--out", str(predictions), *more]) == 0
    scores = [each["pred_score"] for each in pickle.loads(predictions.read_bytes())]
    assert len(scores) == 6 and scores[0].shape == (3,)


def test_of_several_processes_one_writes_the_metrics(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "is_main_process", lambda: False)
    metrics, work_dir = tmp_path / "metrics.json", ["--work-dir", str(tmp_path)]
    command = [str(CONFIG), str(trained / "epoch_1.pth"), *work_dir, "--out", str(metrics)]
    assert run(evaluate.main, [*command, *options(**data(folder))]) == 0
    assert not metrics.exists()


def test_every_training_is_checked() -> None:
    config = Config(dict(custom_hooks=[dict(type="NonFiniteLossHook", action="skip")]))
    train._add_checks(config)
    skip = dict(type="NonFiniteLossHook", action="skip")
    added = [dict(type="FrozenWeightsHook"), dict(type="InterruptHook")]
    assert config.custom_hooks == [skip, *added]


@pytest.mark.parametrize("named", ["CheckpointHook", "mmengine.CheckpointHook", None])
def test_every_config_saves_safely(named: str | None) -> None:
    given = {"checkpoint": dict(type=named, interval=5)} if named else {}
    config = Config(dict(default_hooks=given))
    train._use_safe_checkpoints(config)
    expected = dict(type="SafeCheckpointHook", interval=5 if named else 1)
    assert config.default_hooks.checkpoint == expected


# ---- what can be given wrong


def error_of(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tool: Callable = train.main
) -> str:
    """The one line of the tool's own on stderr, where workers that are shut down may write too."""
    assert run(tool, arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """A call of tools/train.py in an empty directory; it returns the error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, config: Path = CONFIG, **changes: object) -> str:
        return error_of(capsys, [str(config), *arguments, *options(**changes)])

    return call


def test_no_data(refused: Callable[..., str], tmp_path: Path) -> None:
    missing = refused()
    (tmp_path / "data" / "imagenet").mkdir(parents=True)
    without_split = refused()
    (tmp_path / "data" / "imagenet" / "train" / CLASSES[0]).mkdir(parents=True)
    without_images = refused()
    assert "error: data/imagenet does not exist" in missing
    assert "error: data/imagenet/train does not exist" in without_split
    assert "error: data/imagenet/train holds no image in a class folder" in without_images
    for line in (missing, without_split, without_images):
        assert "data/imagenet must hold train/<class>/*.JPEG and val/<class>/*.JPEG" in line
        assert "configs/demo/rednet26_digits.py" in line


def test_the_whole_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(CONFIG)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: data/imagenet does not exist" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_class_too_many(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "four", (*CLASSES, "n09999999"))
    line = refused(**data(folder))
    assert f"{folder}/train holds 4 class folders, and model.head.num_classes is 3" in line
    assert "--cfg-options model.head.num_classes=4" in line
    shutil.rmtree(folder / "val" / "n09999999")
    line = refused(**data(folder))
    assert "holds 4 class folders" in line and f"only in {folder}/train: n09999999" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image(refused: Callable[..., str], tmp_path: Path, workers: int) -> None:
    folder = write_image_folder(tmp_path / "corrupt")
    image = folder / "train" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG"
    image.write_bytes(image.read_bytes()[:200])
    line = refused(train_dataloader__num_workers=workers, **data(folder))
    assert line.startswith(f"error: cannot read image {image}: ")


def test_an_unknown_depth(refused: Callable[..., str], folder: Path) -> None:
    line = refused(model__backbone__depth=27, **data(folder))
    assert line == "error: model.backbone: depth must be one of (26, 38, 50, 101, 152), got 27"


def test_an_unknown_config(refused: Callable[..., str]) -> None:
    line = refused(config=ROOT / "configs" / "rednet51_imagenet.py")
    assert "there is no config file" in line and "did you mean" in line
    assert "rednet50_imagenet.py" in line


def test_a_checkpoint_that_is_not_there(
    refused: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--resume missing.pth is not a file" in refused("--resume", "missing.pth")
    (tmp_path / "epoch_1.pth").write_bytes(b"")
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    line = refused("--resume", "--work-dir", str(tmp_path))
    assert f"no checkpoint of {tmp_path} is complete" in line and "epoch_1.pth" in line
    line = error_of(capsys, [str(CONFIG), "missing.pth"], evaluate.main)
    assert "missing.pth is not a file" in line


def test_amp_on_a_cpu(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "get_device", lambda: "cpu")
    config = Config(dict(optim_wrapper=dict(type="AmpOptimWrapper", loss_scale="dynamic")))
    train._use_amp(config)
    assert config.optim_wrapper == dict(type="CpuAmpOptimWrapper")
    line = refused("--amp", optim_wrapper__dtype="float16")
    assert "dtype must be bfloat16 on a CPU, got float16, which needs a GPU" in line


def test_a_checkpoint_of_another_model(
    capsys: pytest.CaptureFixture[str], trained: Path, folder: Path, tmp_path: Path
) -> None:
    command = [str(CONFIG), str(trained / "epoch_1.pth"), "--work-dir", str(tmp_path)]
    deep = options(model__backbone__depth=38, **data(folder))
    line = error_of(capsys, [*command, *deep], evaluate.main)
    assert "does not fit the model of the config" in line and "missing (backbone.layer" in line
    assert run(evaluate.main, [*command, "--partial", *deep]) == 0
    assert "fits the model in part" in log_of(tmp_path)


def test_an_output_of_an_unknown_kind(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    command = [str(CONFIG), str(trained / "epoch_1.pth")]
    for wrong in (["results"], ["results.txt"], ["results.txt", "--out-item", "metrics"]):
        assert ".pkl" in error_of(capsys, [*command, "--out", *wrong], evaluate.main)
    assert "--out FILE" in error_of(capsys, [*command, "--out-item", "pred"], evaluate.main)


def test_results_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], trained: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    command = [str(CONFIG), str(trained / "epoch_1.pth"), *options(**data(folder))]
    for argument, value in (
        ("--out", "file/a.json"),
        ("--show-dir", "file"),
        ("--work-dir", "file"),
    ):
        line = error_of(capsys, [*command, argument, str(tmp_path / value)], evaluate.main)
        assert f"{tmp_path / value} cannot be created: {tmp_path}/file is a file" in line


def test_views_of_which_no_picture_can_be_drawn(
    capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    command = [str(CONFIG), str(trained / "epoch_1.pth"), "--tta", "--show-dir", "pictures"]
    assert "leave out --tta" in error_of(capsys, command, evaluate.main)
