"""Misspelt keys that classes and heads ignore are refused; what works is not."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet")

from mmengine.config import Config
from mmengine.hooks import EMAHook

from rednet.cli import unread_keys
from rednet.cli.model import build_model
from rednet.cli.unread_keys import check_unread_keys
from rednet.errors import UserError
from tests.reliability.stock_configs import config_files, read, refusals

ROOT = Path(__file__).resolve().parents[2]
FASTER = ROOT / "configs/demo/faster-rcnn_rednet26_digits.py"


@pytest.fixture(scope="module")
def check() -> Iterator[Callable[..., None]]:
    """Checks the Faster R-CNN with options of the command line; the sources are read once."""
    faster = Config.fromfile(FASTER)
    read_all = unread_keys._sources
    sources = functools.cache(lambda packages: list(read_all(packages)))

    def call(options: dict[str, Any]) -> None:
        config = deepcopy(faster)
        config.merge_from_dict(options)
        check_unread_keys(config, "mmdet")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unread_keys, "_sources", lambda packages: sources(frozenset(packages)))
        yield call


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.test_cfg.rcnn.scor_thr", 0.3, "=0.3: nothing reads 'scor_thr'; did you mean score"),
        ("model.test_cfg.rcnn.max_per_imgg", 9, "did you mean max_per_img?"),
        ("model.test_cfg.rcn", dict(a=1), "=dict(a=1): nothing reads 'rcn'; did you mean rcnn"),
        (
            "model.train_cfg.rpn_proposal.nms_pri",
            1,
            "nothing reads 'nms_pri'; did you mean nms_pre",
        ),
        ("model.train_cfg.rcnn", [dict(pos_weigth=1)], "rcnn.0.pos_weigth=1: nothing reads"),
        ("model.train_cfg.rcnn.sampler.neg_pos_upb", 3, "RandomSampler has no argument 'neg_pos_u"),
        ("default_hooks.checkpoint.intervall", 1, "Hook has no argument 'intervall'; did you mean"),
        ("custom_hooks", [dict(type="EMAHook", begin_epok=1)], "custom_hooks.0.begin_epok=1: EMAH"),
        (
            "train_dataloader.dataset.pipeline.2",
            dict(type="RandomResize", scale=(9, 9), ratio_rang=(1, 2)),
            "pipeline.2.ratio_rang=(1, 2): RandomResize has no argument 'ratio_rang'; did you mean",
        ),
    ],
)
def test_a_misspelt_key(check: Callable[..., None], key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check({key: value})
    assert str(caught.value).startswith(key) and message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.test_cfg.rcnn.score_thr", 0.3),
        ("model.test_cfg.rcnn.remark", "resembles nothing"),
        ("model.test_cfg.rcnn.nms_thr", 0.5),  # resembles nms_pre, and mmdet's sources have it
        ("model.test_cfg.rcnn.nms.split_thr", 1),  # nms has a type
        ("model.train_cfg.rpn_proposal.min_bbox_size", 0),
        ("custom_hooks", [dict(type="EMAHook", momentum=0.1, update_buffers=True)]),
        ("default_hooks.checkpoint.priority", 10),
        ("train_dataloader.dataset.pipeline.2", dict(type="RandomResize", scale=9, keep_ratio=1)),
        ("model.rpn_head.loss_cls.type", "Nope"),  # is refused where the model is built
    ],
)
def test_a_key_that_passes(check: Callable[..., None], key: str, value: Any) -> None:
    check({key: value})


def test_a_class_that_a_new_style_config_imports(check: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="EMAHook has no argument 'begin_epok'"):
        check({"custom_hooks": [dict(type=EMAHook, begin_epok=1)]})


def test_what_other_packages_read_passes(
    check: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_hooks.py").write_text("def limit(model):\n    return model.test_cfg.scor_thr\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("my_hooks")
    monkeypatch.setitem(sys.modules, "my_hooks", sys.modules["my_hooks"])  # is removed at the end
    for imports in (["my_hooks"], "my_hooks"):
        check({"model.test_cfg.scor_thr": 1, "custom_imports": dict(imports=imports)})


def test_building_a_model_checks_its_keys_only() -> None:
    config = Config.fromfile(FASTER)
    config.default_hooks.checkpoint.intervall = 1
    misspelt = deepcopy(config)
    build_model(config)
    misspelt.model.test_cfg.rcnn.scor_thr = 1
    with pytest.raises(UserError, match=r"model.test_cfg.rcnn.scor_thr=1: nothing reads"):
        build_model(misspelt)


@pytest.mark.parametrize("whose", config_files(every=60, of_ours=3))
def test_no_working_config_is_refused(whose: str) -> None:
    configs = filter(None, map(read, config_files(every=60, of_ours=3)[whose]))
    assert [line for config in configs for line in refusals(config)] == []
