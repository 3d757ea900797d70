"""Compare mmdet's stock models and the operators' times with compiled mmcv, on the CPU.

Run where mmcv is compiled. Each model is built once; its loss, the gradients of its parameters and
its predictions on random images are computed with mmcv's operators and with those of
rednet.mmcv_ops in their place.

    python tests/mmcv_ops/compare_with_compiled.py [NAME ...]    models whose path contains a NAME
    python tests/mmcv_ops/compare_with_compiled.py --time        times of operators

docs/results/mmcv_operators.md has the results.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmcv import ops
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from torch import Tensor, nn

from rednet.cli.model import build_model
from rednet.cli.random_batch import random_batch
from rednet.mmcv_ops.operators import OPERATORS

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
MODELS = (
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
    "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
    "retinanet/retinanet_r50_fpn_1x_coco",
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco",
    "atss/atss_r50_fpn_1x_coco",
    "gfl/gfl_r50_fpn_1x_coco",
    "yolox/yolox_s_8xb8-300e_coco",
    "detr/detr_r50_8xb2-150e_coco",
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
    "dino/dino-4scale_r50_8xb2-12e_coco",
    "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco",
    "solov2/solov2_r50_fpn_1x_coco",
    "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance",
    "rtmdet/rtmdet_tiny_8xb32-300e_coco",
    "guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco",
    "carafe/faster-rcnn_r50_fpn-carafe_1x_coco",
    "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco",
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco",
    "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco",
    "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco",
    "vfnet/vfnet_r50_fpn_1x_coco",
    "reppoints/reppoints-moment_r50_fpn_1x_coco",
)
# Images and their side, 2 of 128 for others. DINO needs as many pixels in its maps as it has
# queries, mmcv's masked convolution a single image.
BATCHES = {
    "dino/dino-4scale_r50_8xb2-12e_coco": (2, 256),
    "guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco": (1, 128),
}
TOLERANCE = 1e-5
TURNS = 9


@contextmanager
def our_operators() -> Iterator[set[str]]:
    """Puts rednet.mmcv_ops in the place of mmcv's operators, and collects which are called."""
    extension = import_module("mmcv._ext")
    compiled = {name: getattr(extension, name) for name in OPERATORS}
    called: set[str] = set()
    vars(extension).update({name: noted(name, called) for name in OPERATORS})
    try:
        yield called
    finally:
        vars(extension).update(compiled)


def noted(name: str, called: set[str]) -> Callable[..., Any]:
    """One of our operators, which adds its name to a set."""

    def call(*args: Any, **kwargs: Any) -> Any:
        called.add(name)
        return OPERATORS[name](*args, **kwargs)

    return call


# ---- models


def build(name: str, most_boxes: int = 100) -> nn.Module:
    """A stock model with random weights that predicts boxes of any score; nothing is downloaded."""
    config = Config.fromfile(CONFIGS / f"{name}.py")
    if "backbone" in config.model:
        config.model.backbone.pop("init_cfg", None)
    accept_all_scores(config.model.get("test_cfg"), most_boxes)
    torch.manual_seed(0)
    model = build_model(config)
    model.init_weights()
    return model


def accept_all_scores(config: Any, most_boxes: int) -> None:
    """Sets every threshold of scores below a config to zero, and the limits of boxes."""
    for key, value in (config or {}).items():
        if key in ("score_thr", "filter_thr"):
            config[key] = 0.0
        elif key == "max_per_img":
            config[key] = min(value, most_boxes)
        elif isinstance(value, dict):
            accept_all_scores(value, most_boxes)


def results(model: Any, images: int, side: int) -> dict[str, Tensor]:
    """The loss, the gradients of the parameters, and predictions, on random images."""
    torch.manual_seed(1)
    batch = random_batch("mmdet", [(side, side)] * images, objects=3)
    if type(model).__name__ == "RTMDet":  # its preprocessor expects masks of another class
        for sample in batch["data_samples"]:
            del sample.gt_instances.masks
    model.train()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    loss, _ = model.parse_losses(model.loss(data["inputs"], data["data_samples"]))
    loss.backward()
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    found = {"loss": loss.detach(), "gradients": torch.cat(gradients)}
    model.eval()
    with torch.no_grad():
        predicted = model.test_step(copy.deepcopy(batch))
    for index, sample in enumerate(predicted):
        for key, value in sample.pred_instances.items():
            if isinstance(value, Tensor):
                found[f"{key} {index}"] = value.float()
    return found


def compare(name: str) -> str:
    """A row of the table."""
    model, shape = build(name), BATCHES.get(name, (2, 128))
    with our_operators() as called:
        ours = results(copy.deepcopy(model), *shape)
    count = sum(len(value) for key, value in ours.items() if key.startswith("scores"))
    names = {each.removesuffix("_forward") for each in called if "backward" not in each}
    served = ", ".join(sorted(names))
    row = f"| {name} | {served} | {count} | {ours['loss']:.6f} |"
    try:
        compiled = results(model, *shape)
    except RuntimeError as error:
        if "implementation for device cpu not found" not in str(error):
            raise
        return f"{row} compiled mmcv has no CPU form |"
    errors = {key: difference(ours[key], expected) for key, expected in compiled.items()}
    worst = max(errors, key=lambda key: errors[key])
    verdict = "equal" if errors[worst] <= TOLERANCE else f"DIFFERS in {worst}"
    return f"{row} {verdict}: {errors[worst]:.1e} |"


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; infinite between shapes."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().clamp(min=1e-12)
    return float((actual - expected).abs().max() / scale)


# ---- times


def problems() -> dict[str, Callable[[], object]]:
    """Operators at a detector's sizes, each with its backward pass where it has one."""
    torch.manual_seed(0)
    boxes = torch.rand(2000, 2) * 800
    boxes = torch.cat([boxes, boxes + torch.rand(2000, 2) * 200 + 1], dim=1)
    scores = torch.rand(2000)
    image = torch.randn(1, 256, 100, 168, requires_grad=True)
    rois = torch.cat([torch.zeros(512, 1), boxes[:512]], dim=1)
    layer = ops.DeformConv2d(256, 256, 3, padding=1)
    offset = torch.randn(1, 18, 50, 84)
    modulated = ops.ModulatedDeformConv2d(256, 256, 3, padding=1)
    small, mask = torch.randn(1, 256, 50, 84, requires_grad=True), torch.rand(1, 9, 50, 84)

    def roi_align() -> Tensor:
        return ops.roi_align(image, rois, (7, 7), 0.125, 0, "avg", True)

    return {
        "nms, 2,000 boxes": lambda: ops.nms(boxes, scores, 0.5),
        "soft nms, 2,000 boxes": lambda: ops.soft_nms(boxes, scores, 0.3, 0.5, 1e-3, "linear"),
        "RoIAlign, 512 x 256 x 7 x 7": lambda: roi_align().detach(),
        "RoIAlign with backward": lambda: roi_align().sum().backward(),
        "deformable convolution, 256 x 50 x 84": lambda: layer(small, offset).detach(),
        "deformable convolution with backward": lambda: layer(small, offset).sum().backward(),
        "modulated, with backward": lambda: modulated(small, offset, mask).sum().backward(),
    }


def milliseconds(action: Callable[[], object]) -> float:
    """One call."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def print_times() -> None:
    """A table: both in turns, medians."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {TURNS}\n")
    print("| operator | compiled mmcv, ms | ours, ms | ratio |\n|---|---|---|---|")
    for name, action in problems().items():
        compiled, ours = [], []
        for turn in range(TURNS + 1):
            first = milliseconds(action)
            with our_operators():
                second = milliseconds(action)
            if turn:
                compiled.append(first)
                ours.append(second)
        one, other = statistics.median(compiled), statistics.median(ours)
        print(f"| {name} | {one:.1f} | {other:.1f} | {other / one:.2f} |", flush=True)


def main(arguments: list[str]) -> None:
    """Prints the table that the arguments ask for."""
    warnings.filterwarnings("ignore")
    if arguments == ["--time"]:
        print_times()
        return
    MMLogger.get_instance("comparison", log_level="ERROR")
    # Some data preprocessors ask at which iteration the training is.
    MessageHub.get_instance("comparison").update_info("iter", 0)
    print(
        "| model | operators | detections | loss | against compiled mmcv |\n|---|---|---|---|---|"
    )
    for name in MODELS:
        if not arguments or any(part in name for part in arguments):
            print(compare(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
