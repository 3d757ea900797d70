from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import modelindex
import pytest
from mmengine.config import Config
from mmengine.infer import BaseInferencer

from tests.forked_programs import run_forked

pytest.importorskip("mmpretrain")

ROOT = Path(__file__).resolve().parents[2]
DEPTHS = (26, 38, 50, 101, 152)

LOOK_UP = """
import mmpretrain, rednet, sys
names = mmpretrain.list_models('rednet*_imagenet')
assert len(names) == 5, names
model = mmpretrain.get_model('rednet26_imagenet', head=dict(num_classes=7))
assert type(model.backbone) is rednet.models.RedNet
assert model.head.fc.out_features == 7
assert 'resnet50_8xb32_in1k' in mmpretrain.list_models('resnet50*')
assert 'resnet18_odconv1x_imagenet' in mmpretrain.list_models('resnet18*')
assert not [finder for finder in sys.meta_path if 'rednet.models' in type(finder).__module__]
"""


@pytest.mark.parametrize(
    "first",
    [
        "import rednet, sys; assert 'mmpretrain' not in sys.modules",
        "import mmpretrain; import rednet",
        "import mmpretrain; mmpretrain.list_models(); import rednet",
    ],
    ids=["rednet first", "mmpretrain first", "after the first look-up"],
)
def test_models_are_found_by_name(first: str) -> None:
    done = run_forked(first + LOOK_UP)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("mmdet", "retinanet_rednet50_fpn_1x_coco"),
        ("mmdet", "Mask-RCNN_R50-SAC_FPN_1x_COCO"),
        ("mmseg", "fpn_rednet50_4xb2-80k_cityscapes-512x1024"),
    ],
)
def test_inferencers_of_other_libraries_find_models_by_name(library: str, name: str) -> None:
    pytest.importorskip(library)
    inferencer = SimpleNamespace(scope=library)
    config, weights = BaseInferencer._load_model_from_metafile(inferencer, name)
    assert Path(config.filename).stem == name.lower()
    assert weights is None


def test_the_index_names_what_the_configs_build() -> None:
    models = {each.name: each for each in modelindex.load(str(ROOT / "model-index.yml")).models}
    classifiers = [models.pop(f"rednet{depth}_imagenet") for depth in DEPTHS]
    for depth, model in zip(DEPTHS, classifiers, strict=True):
        assert model.in_collection == "RedNet"
        assert Config.fromfile(ROOT / model.config).model.backbone.depth == depth
    for path in (ROOT / "configs/variants").glob("*.py"):
        variant = models.pop(path.stem)
        assert variant.config == str(path.relative_to(ROOT))
        assert [result.task for result in variant.results] == ["Image Classification"]
    for path in (ROOT / "configs/segmentation").glob("*.py"):
        segmentor = models.pop(path.stem)
        assert segmentor.config == str(path.relative_to(ROOT))
        assert [result.task for result in segmentor.results] == ["Semantic Segmentation"]
    detectors = (ROOT / "configs/detection").glob("*.py")
    assert sorted(models) == sorted(each.stem for each in detectors)
    for name, model in models.items():
        assert model.config == f"configs/detection/{name}.py"
        tasks = [result.task for result in model.results]
        assert tasks == ["Object Detection", "Instance Segmentation"][: len(tasks)]
        assert len(tasks) == 1 + name.startswith(("mask-rcnn", "htc"))
