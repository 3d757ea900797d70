from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from mmengine.config import Config

from rednet.cli.config import read_config
from rednet.cli.config_keys import fields
from rednet.cli.preflight import check_classes, check_config, check_scope
from rednet.errors import MissingDependencyError, UserError
from tests.image_folder import CLASSES, write_image_folder

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("train_dataloader", "val_dataloader")


# ---- classes


def folders(train: str, val: str) -> dict:
    return dict(train_dataloader=("t", list(train)), val_dataloader=("v", list(val)))


@pytest.mark.parametrize("found", [folders("abc", "abc"), dict(val_dataloader=("v", list("abc")))])
def test_classes_that_agree(found: dict) -> None:
    assert check_classes(found, 3) == []
    assert check_classes(found, None) == []
    assert check_classes({}, 3) == []


def test_too_many_classes() -> None:
    advice = r"t holds 4 class folders.*num_classes is 3: .*--cfg-options model.head.num_classes=4"
    with pytest.raises(UserError, match=advice):
        check_classes(folders("abcd", "abcd"), 3)


def test_fewer_classes_than_the_head_has() -> None:
    (note,) = check_classes(folders("ab", "ab"), 5)
    assert "t holds 2 class folders" in note and "3 outputs stay unused" in note


def test_data_of_different_classes() -> None:
    with pytest.raises(UserError, match="only in t: b, c; only in v: d; .* is 3$"):
        check_classes(folders("abc", "ad"), 3)
    with pytest.raises(UserError, match="only in t: b, c, d, e, f and 2 more; "):
        check_classes(folders("abcdefgh", "a"), 8)


# ---- whole configs


def imagenet(folder: Path, **options: object) -> Config:
    root = {"train_dataloader.dataset.data_root": str(folder)}
    changed = {key.replace("__", "."): value for key, value in options.items()}
    return read_config(str(ROOT / "configs/rednet50_imagenet.py"), {**root, **changed})[0]


def test_an_image_folder(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    config = imagenet(write_image_folder(tmp_path), model__head__num_classes=3)
    notes = check_config(config, LOADERS)
    assert config.val_evaluator.topk == config.test_evaluator.topk == (1,)
    assert len(notes) == 2 and all("topk is (1,)" in note for note in notes)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("a folder", lambda path: path.mkdir()),
        ("a link that leads nowhere", lambda path: path.symlink_to("nowhere")),
    ],
)
def test_images_that_are_not_files(kind: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    config = imagenet(write_image_folder(tmp_path), model__head__num_classes=3)
    path = tmp_path / "train" / CLASSES[1] / "zebra.JPEG"
    make(path)
    message = rf"train: 1 of \d+ images are not files; the first, {path}, is {kind}"
    with pytest.raises(UserError, match=message):
        check_config(config, LOADERS)


def test_data_that_name_their_classes(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    classes = {"train_dataloader.dataset.metainfo.classes": list("ab")}
    config = imagenet(write_image_folder(tmp_path), **classes)
    with pytest.raises(UserError, match="3 class folders, and the config names 2 classes"):
        check_config(config, LOADERS)


def test_names_of_classes_that_are_numbers(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    classes = {"train_dataloader.dataset.metainfo.classes": (0, 1, 2)}
    config = imagenet(write_image_folder(tmp_path), **classes)
    with pytest.raises(UserError, match="classes of train_dataloader.* must be texts, got 0"):
        check_config(config, LOADERS)


def test_annotations_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    write_image_folder(tmp_path)
    config = imagenet(tmp_path, train_dataloader__dataset__ann_file="train.txt")
    with pytest.raises(UserError, match="train.txt does not exist") as caught:
        check_config(config, ["train_dataloader"])
    assert "<class>" not in str(caught.value)
    (tmp_path / "train.txt").write_text(f"{CLASSES[0]}/{CLASSES[0]}_0.JPEG 0\n")
    assert check_config(config, ["train_dataloader"]) == []


def test_data_that_need_no_files() -> None:
    pytest.importorskip("mmpretrain")
    config = Config.fromfile(ROOT / "configs/demo/rednet26_digits.py")
    assert check_config(config, LOADERS) == []


@pytest.mark.parametrize(
    "key", ["load_from", "model.backbone.init_cfg.checkpoint", "model.neck.0.init_cfg.1.checkpoint"]
)
def test_a_checkpoint_to_start_from(key: str, tmp_path: Path) -> None:
    pretrained = dict(type="Pretrained", checkpoint=None)
    backbone, neck = dict(init_cfg=dict(pretrained)), [dict(init_cfg=[{}, dict(pretrained)])]
    config = Config(dict(model=dict(backbone=backbone, neck=neck), train_dataloader={}))
    assert check_config(config, ["train_dataloader"]) == []
    config.merge_from_dict({key: "https://example.org/model.pth"})
    assert check_config(config, ["train_dataloader"]) == []
    missing = str(tmp_path / "none.pth")
    config.merge_from_dict({key: missing})
    with pytest.raises(UserError) as caught:
        check_config(config, ["train_dataloader"])
    assert str(caught.value) == f"{key} {missing} is not a file"
    assert check_config(config, ["test_dataloader"]) == []  # nothing starts from it there


def test_fields_of_dicts_and_lists() -> None:
    node = dict(a=[dict(b=1)], c="d")
    assert list(fields(node, "m")) == [
        ("m.a", [dict(b=1)]),
        ("m.a.0", dict(b=1)),
        ("m.a.0.b", 1),
        ("m.c", "d"),
    ]


# ---- libraries


def without(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find(name: str) -> ModuleSpec | None:
        return None if name == missing else find_spec(name) or ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    without("mmpretrain", monkeypatch)
    with pytest.raises(MissingDependencyError, match="pip install mmpretrain"):
        check_scope("mmpretrain")
    check_scope("mmengine")
    check_scope(None)


def test_the_name_that_pip_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    without("mmseg", monkeypatch)
    with pytest.raises(MissingDependencyError, match="pip install mmsegmentation$"):
        check_scope("mmseg")


def test_two_packages_of_mmcv_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(dict(model=dict(head=dict(num_classes=3))))
    assert check_config(config, []) == []
    monkeypatch.setattr("rednet.mmcv_ops.installation.version", lambda package: "2.1.0")
    (note,) = check_config(config, [])
    assert note.startswith("mmcv and mmcv-lite and onedl-mmcv are installed over each other's")


def test_annotations_of_two_loaders_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mmdet")
    read: list[str] = []
    monkeypatch.setattr(
        "rednet.cli.preflight.check_coco", lambda path, *_, **__: read.append(path) or ["a note"]
    )
    (tmp_path / "a.json").write_text("{}")
    dataset = dict(
        type="CocoDataset", ann_file=str(tmp_path / "a.json"), metainfo=dict(classes=("a",))
    )
    loaders = {name: dict(dataset=dataset) for name in ("train_dataloader", "val_dataloader")}
    config = Config(dict(default_scope="mmdet", model=dict(type="FasterRCNN"), **loaders))
    notes = check_config(config, list(loaders))
    assert len(read) == 1 and notes.count("a note") == 1
