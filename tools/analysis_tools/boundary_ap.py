"""Print how much of the mask AP is lost at the masks' boundaries.

    python tools/test.py CONFIG CHECKPOINT \
        --cfg-options test_evaluator.outfile_prefix=work_dirs/result
    python tools/analysis_tools/boundary_ap.py ANNOTATIONS work_dirs/result.segm.json

Prints a table of AP, AP50, AP75 and AP by size: once as COCO computes it from the overlap of masks,
and once from the lesser of this overlap and that of the boundaries alone, the pixels of a mask that
are within a few pixels of its outline. It is the measure of *Boundary IoU: Improving Object-Centric
Image Segmentation Evaluation* (Cheng et al., CVPR 2021).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rednet.cli.coco import check_coco
from rednet.cli.command import run
from rednet.errors import UserError

DETECTION = ("image_id", "category_id", "score", "segmentation")
METRICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
Annotation = dict[str, Any]


class BoundaryEvaluation(COCOeval):
    """COCO's evaluation of masks, from the lesser of the IoU of masks and that of their boundaries.

    Args:
        truth: The annotations.
        found: The detections, as :meth:`COCO.loadRes` gives them.
        dilation_ratio: Distance from the outline up to which pixels belong to the boundary, as a
            part of the image's diagonal.
    """

    def __init__(self, truth: COCO, found: COCO, dilation_ratio: float) -> None:
        super().__init__(truth, found, "segm")
        self._dilation_ratio = dilation_ratio

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803  pycocotools' names
        """The overlap of each detection with each annotation of an image and category."""
        masks = super().computeIoU(imgId, catId)
        annotations = [*self._gts[imgId, catId], *self._dts[imgId, catId]]
        with _boundaries(annotations, self._dilation_ratio):
            boundaries = super().computeIoU(imgId, catId)
        return np.minimum(masks, boundaries)


@contextlib.contextmanager
def _boundaries(annotations: Sequence[Annotation], dilation_ratio: float) -> Iterator[None]:
    """Lets the annotations have the boundaries of their masks only."""
    masks = [annotation["segmentation"] for annotation in annotations]
    for annotation, mask in zip(annotations, masks, strict=True):
        annotation["segmentation"] = boundary(mask, dilation_ratio)
    yield
    for annotation, mask in zip(annotations, masks, strict=True):
        annotation["segmentation"] = mask


def boundary(mask: Annotation, dilation_ratio: float) -> Annotation:
    """The pixels of a mask that are close to its outline, the edge of the image included.

    Args:
        mask: A mask of shape (H, W), encoded as pycocotools does it.
        dilation_ratio: What is close, as a part of the image's diagonal. At least one pixel is.

    Returns:
        The boundary, encoded.
    """
    pixels = coco_mask.decode(mask)
    distance = max(round(dilation_ratio * hypot(*pixels.shape)), 1)
    outside = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(outside, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return coco_mask.encode(np.asfortranarray(pixels - inner))


def evaluate(
    annotations: Path, results: Path, dilation_ratio: float
) -> dict[str, dict[str, float]]:
    """Evaluates detections by their masks and by their boundaries.

    Args:
        annotations: An annotation file of COCO's format.
        results: The masks that mmdet's CocoMetric wrote with ``outfile_prefix``.
        dilation_ratio: See :class:`BoundaryEvaluation`.

    Returns:
        The metrics by name, for ``"mask"`` and ``"boundary"``. A metric for which there are no
        annotations is -1.

    Raises:
        UserError: If a file is missing or not what it should be.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        truth = _annotated(annotations)
        found = truth.loadRes(_masks_of(results, truth))
        evaluations = {
            "mask": COCOeval(truth, found, "segm"),
            "boundary": BoundaryEvaluation(truth, found, dilation_ratio),
        }
        for evaluation in evaluations.values():
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    return {
        name: dict(zip(METRICS, map(float, evaluation.stats), strict=False))
        for name, evaluation in evaluations.items()
    }


def _annotated(path: Path) -> COCO:
    check_coco(str(path), ())
    truth = COCO(path)
    for annotation in truth.dataset["annotations"]:
        _require(f"{path}: annotation {annotation['id']}", annotation, ("segmentation", "iscrowd"))
    return truth


def _require(what: str, entry: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if entry.get(name) is None:
            raise UserError(f"{what} has no {name}")


def _masks_of(results: Path, truth: COCO) -> list[Annotation]:
    found = _read_list(results)
    if not found:
        raise UserError(f"{results} has no detections")
    if not all(isinstance(each, Mapping) and "segmentation" in each for each in found):
        raise UserError(f"{results} has no masks: the file that ends in .segm.json has them")
    for number, each in enumerate(found):
        _require(f"{results}: detection {number}", each, DETECTION)
    known = {"image_id": truth.getImgIds(), "category_id": truth.getCatIds()}
    for field, ids in known.items():
        unknown = sorted({each[field] for each in found} - set(ids))
        if unknown:
            raise UserError(f"{results}: {field} {unknown[0]} is not among the annotated ones")
    # Sizes are those of masks. pycocotools would take a box's, where there is one.
    return [{key: value for key, value in each.items() if key != "bbox"} for each in found]


def _read_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # of JSON and of its encoding
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a list, got a {type(content).__name__}")
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    args = _parse(arguments)
    if not 0 < args.dilation_ratio < 1:
        raise UserError(f"--dilation-ratio must be between 0 and 1, got {args.dilation_ratio}")
    found = evaluate(args.annotations, args.results, args.dilation_ratio)
    print("| AP from | " + " | ".join(METRICS) + " |")
    print("|---" * (len(METRICS) + 1) + "|")
    for name, metrics in found.items():
        cells = ["none" if value < 0 else f"{value:.3f}" for value in metrics.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="the annotations, a JSON file of COCO's")
    parser.add_argument("results", type=Path, help="the masks, PREFIX.segm.json of CocoMetric")
    parser.add_argument(
        "--dilation-ratio",
        type=float,
        default=0.02,
        help="width of a boundary, as a part of the image's diagonal (%(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
