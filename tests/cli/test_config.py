from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from rednet.cli.config import follow_data_root, read_config
from rednet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
IMAGENET = str(ROOT / "configs" / "rednet50_imagenet.py")


def loader(root: str) -> dict:
    return dict(dataset=dict(type="CustomDataset", data_root=root))


def roots(config: Config) -> list[str]:
    names = ("train_dataloader", "val_dataloader", "test_dataloader")
    return [config[name].dataset.data_root for name in names]


# ---- data_root


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train_dataloader.dataset.data_root": "a"}, ["a", "a", "a"]),
        ({"val_dataloader.dataset.data_root": "b"}, ["data/imagenet", "b", "b"]),
        (
            {
                "train_dataloader.dataset.data_root": "a",
                "val_dataloader.dataset.data_root": "b",
            },
            ["a", "b", "b"],
        ),
        (
            {
                "train_dataloader.dataset.data_root": "a",
                "val_dataloader.dataset.data_root": "data/imagenet",
            },
            ["a", "data/imagenet", "a"],
        ),
        (
            {"test_dataloader.dataset.data_root": "c"},
            ["data/imagenet", "data/imagenet", "c"],
        ),
    ],
    ids=["train", "val", "train and val", "train alone", "test"],
)
def test_data_follow_the_training_data(options: dict, expected: list[str]) -> None:
    config, notes = read_config(IMAGENET, options)
    assert roots(config) == expected
    followed = [root for root in expected if root != "data/imagenet"][len(options) :]
    given = [value for value in options.values() if value != "data/imagenet"]
    assert len(notes) == sum(root in given for root in expected) - len(given)
    assert all(f"data_root is {root} too" in "".join(notes) for root in followed)


def test_other_data_stay_where_they_are() -> None:
    original = Config(dict(train_dataloader=loader("old"), val_dataloader=loader("elsewhere")))
    config = Config(dict(train_dataloader=loader("new"), val_dataloader=loader("elsewhere")))
    assert follow_data_root(original, config) == []
    assert config.val_dataloader.dataset.data_root == "elsewhere"


def test_wrapped_data_and_annotations_follow() -> None:
    def config(root: str) -> Config:
        return Config(
            dict(
                train_dataloader=dict(dataset=dict(type="RepeatDataset", times=2, **loader(root))),
                val_dataloader=loader("data/coco/"),
                val_evaluator=[dict(type="CocoMetric", ann_file="data/coco/annotations/val.json")],
            )
        )

    moved = config("/big/coco")
    notes = follow_data_root(config("data/coco/"), moved)
    assert moved.val_dataloader.dataset.data_root == "/big/coco"
    assert moved.val_evaluator[0].ann_file == "/big/coco/annotations/val.json"
    assert len(notes) == 2


# ---- files and keys


def test_without_options_the_config_is_the_files() -> None:
    config, notes = read_config(IMAGENET)
    assert (config.model.backbone.depth, notes) == (50, [])


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"no config file .*rednet5_imagenet.py; did you mean"):
        read_config(IMAGENET.replace("50", "5"))
    with pytest.raises(UserError, match="no config file nowhere/x.py$"):
        read_config("nowhere/x.py")


def test_a_base_of_a_package_that_is_missing_gives_the_command(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text('_base_ = "mmaction::_base_/default_runtime.py"\n')
    with pytest.raises(UserError, match="mmaction2 is not installed: pip install mmaction2"):
        read_config(str(config))


def test_a_base_of_a_fork_with_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.py"
    config.write_text('_base_ = "mmaction::_base_/default_runtime.py"\n')
    base = tmp_path / "mmaction" / ".mim" / "configs" / "_base_" / "default_runtime.py"
    base.parent.mkdir(parents=True)
    base.write_text("log_level = 'DEBUG'\n")
    (tmp_path / "mmaction" / "__init__.py").touch()
    (tmp_path / "mmaction" / ".mim" / "model-index.yml").write_text("Import: []\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODULE2PACKAGE, "mmaction", "mmaction2")  # is put back at the end
    assert read_config(str(config))[0].log_level == "DEBUG"


def test_a_key_through_a_value() -> None:
    with pytest.raises(UserError, match="--cfg-options do not fit"):
        read_config(IMAGENET, {"model.backbone.depth.x": 1})
    with pytest.raises(UserError, match="--cfg-options do not fit.*exceeds the length"):
        read_config(IMAGENET, {"param_scheduler.7.end": 1})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("modle.backbone.depth", "nothing reads the field 'modle'; did you mean model"),
        ("depth", "nothing reads the field 'depth'$"),
        ("data_root", "nothing reads the field 'data_root'; change the fields that the file makes"),
        ("train_pipeline.0.type", "nothing reads the field 'train_pipeline'; change the fields"),
        ("strategy", "nothing reads the field 'strategy'$"),
    ],
)
def test_a_key_that_nothing_reads(key: str, message: str) -> None:
    pytest.importorskip("mmpretrain")
    with pytest.raises(UserError, match=message) as caught:
        read_config(IMAGENET, {key: None})
    assert str(caught.value).startswith(f"--cfg-options {key}: ")


@pytest.mark.parametrize(
    "key",
    [
        "activation_checkpointing",
        "auto_scale_lr.base_batch_size",
        "compile",
        "custom_hooks.0.priority",
        "default_hooks.logger.priority",
        "default_hooks.sync_buffer.type",
        "default_scope",
        "efficient_conv_bn_eval",
        "experiment_name",
        "find_unused_parameters",
        "launcher",
        "load_from",
        "log_processor.window_size",
        "model_wrapper_cfg.find_unused_parameters",
        "param_scheduler.0.end",
        "sync_bn",
        "test_cfg.fp16",
        "tta_model.type",
        "tta_pipeline",
        "visualizer.vis_backends",
        "work_dir",
        "model.backbone.with_cp",
        "model.backbone.norm_cfg.requires_grad",
        "model.backbone.init_cfg.checkpoint",
        "model.train_cfg.augments",
        "optim_wrapper.clip_grad.max_norm",
        "optim_wrapper.loss_scale",
        "optim_wrapper.paramwise_cfg.norm_decay_mult",
        "optim_wrapper.optimizer.dampening",
        "train_cfg.val_begin",
        "train_dataloader.drop_last",
        "train_dataloader.sampler.seed",
        "train_dataloader.dataset.indices",
        "train_dataloader.dataset.pipeline.1.crop_ratio_range",
        "val_evaluator.prefix",
        "env_cfg.dist_cfg.timeout",
        "randomness.diff_rank_seed",
    ],
)
def test_a_new_key_that_is_read(key: str) -> None:
    pytest.importorskip("mmpretrain")
    read_config(IMAGENET, {key: None})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("default_hooks.chekpoint.interval", "checkpoint"),
        ("env_cfg.cudnn_benchmrk", "cudnn_benchmark"),
        ("randomness.sed", "seed"),
    ],
)
def test_a_misspelt_key_that_nothing_would_refuse(key: str, meant: str) -> None:
    parts = ".".join(key.split(".")[:2])
    with pytest.raises(UserError, match=f"nothing reads {parts}; did you mean {meant}"):
        read_config(IMAGENET, {key: 2})


def test_another_class_can_start_afresh(tmp_path: Path) -> None:
    path = tmp_path / "resnext.py"
    path.write_text("model = dict(backbone=dict(type='ResNeXt', depth=101, groups=32))")
    options = {"model.backbone._delete_": True, "model.backbone.type": "RedNet"}
    config, _ = read_config(str(path), {**options, "model.backbone.depth": 50})
    assert config.model.backbone == dict(type="RedNet", depth=50)


def test_another_runner_reads_fields_of_its_own() -> None:
    read_config(IMAGENET, {"runner_type": "FlexibleRunner", "strategy.type": "DDPStrategy"})


def test_custom_imports_of_the_options_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_by_an_option.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    read_config(IMAGENET, {"custom_imports.imports": ["imported_by_an_option"]})
    assert sys.modules.pop("imported_by_an_option")
    with pytest.raises(UserError, match="--cfg-options custom_imports: Failed to import nowhere"):
        read_config(IMAGENET, {"custom_imports.imports": ["nowhere"]})
