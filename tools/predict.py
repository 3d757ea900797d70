"""Classify, detect or segment in pictures with a trained model, and draw what it finds.

Prints one line for each picture. With --out, DIR receives each picture with the result drawn on it
and predictions.json with all results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.device import get_device

from rednet.checkpoint.reading import require_weights_only
from rednet.cli.arguments import config_parser
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.failures import setting_up
from rednet.cli.model import build_model, load_weights, scope_of, with_preprocessor
from rednet.cli.paths import check_checkpoint, check_output
from rednet.datasets import LoadImage
from rednet.errors import UserError
from rednet.files import write_file

PREDICTIONS = "predictions.json"
LOADERS = ("LoadImage", "LoadImageFromFile")


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts for the images that the arguments name."""
    args = _parse(arguments)
    check_checkpoint(args.checkpoint, "the checkpoint")
    load = LoadImage()
    images = {path: load(dict(img_path=path))["img"] for path in args.images}
    if args.out:
        _check_names(args.out, args.images)
    with setting_up():
        predictor = _load(args)
    results = {}
    for path, image in images.items():
        sample = predictor.predict(image)
        results[path] = predictor.result(sample)
        print(f"{path}: {predictor.summary(results[path])}")
        if args.out:
            predictor.draw(image, sample, str(Path(args.out, Path(path).name)))
    if args.out:
        write_file(Path(args.out, PREDICTIONS), (json.dumps(results, indent=2) + "\n").encode())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint file of the trained model")
    parser.add_argument("images", nargs="+", metavar="image", help="picture files")
    parser.add_argument("--out", metavar="DIR", help="folder for drawn pictures and results")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="report and draw detections of at least this score (%(default)s)",
    )
    parser.add_argument("--device", default=get_device(), help="where to run (%(default)s)")
    return parser.parse_args(arguments)


def _check_names(folder: str, images: Sequence[str]) -> None:
    """Checks the files that --out receives before anything is built."""
    check_output(folder, "--out", folder=True)
    names = [Path(path).name for path in images]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"--out needs different file names, got two images named {repeated}")
    for name in (*names, PREDICTIONS):
        check_output(Path(folder, name), "the output", sources=images)


def _load(args: argparse.Namespace) -> Any:
    """The predictor of the config's library, with the trained model."""
    require_weights_only()
    config, _ = read_config(args.config, args.cfg_options)
    scope = scope_of(config)
    if scope not in PREDICTORS:
        raise UserError(
            f"default_scope must be one of {sorted(PREDICTORS)} to predict, got {scope!r}"
        )
    config = with_preprocessor(config)
    model: Any = build_model(config)
    meta = load_weights(model, args.checkpoint).get("meta") or {}
    model.to(args.device).eval()
    return PREDICTORS[scope](model, config, meta.get("dataset_meta") or {}, args.score_threshold)


class Classifier:
    """Predicts with a classifier of mmpretrain.

    Args:
        model: The model in eval mode, with its weights.
        config: The config that it was built from.
        meta: ``dataset_meta`` of the checkpoint; ``classes`` names the classes.
        threshold: No effect: a classifier always names one class.
    """

    def __init__(self, model: Any, config: Config, meta: dict, threshold: float) -> None:
        from mmpretrain.visualization import UniversalVisualizer

        self.model = model
        self.classes = meta.get("classes")
        pipeline = config.test_dataloader.dataset.pipeline
        self.pipeline = Compose([step for step in pipeline if step["type"] not in LOADERS])
        self.visualizer = UniversalVisualizer()

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> Any:
        """Returns mmpretrain's ``DataSample`` of an image, (H, W, 3) in BGR order."""
        data = dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        [sample] = self.model.test_step(default_collate([self.pipeline(data)]))
        return sample.cpu()

    def result(self, sample: Any) -> dict[str, Any]:
        """The class with the highest score, and that score."""
        label = int(sample.pred_label)
        return dict(name=_name(label, self.classes), score=float(sample.pred_score[label]))

    def summary(self, result: dict[str, Any]) -> str:
        """One line for a result."""
        return f"{result['name']} ({result['score']:.2f})"

    def draw(self, image: np.ndarray, sample: Any, file: str) -> None:
        """Writes the image with the class drawn on it."""
        self.visualizer.visualize_cls(
            image[..., ::-1], sample, self.classes, draw_gt=False, out_file=file
        )


class Detector:
    """Predicts with a detector of mmdet.

    Args:
        model: The model in eval mode, with its weights.
        config: The config that it was built from.
        meta: ``dataset_meta`` of the checkpoint; ``classes`` names the classes.
        threshold: Lowest score of the objects that are reported and drawn.
    """

    def __init__(self, model: Any, config: Config, meta: dict, threshold: float) -> None:
        from mmdet.visualization import DetLocalVisualizer

        self.model, self.threshold = model, threshold
        self.classes = meta.get("classes")
        model.cfg = config  # where inference_detector looks for the pipeline
        self.visualizer = DetLocalVisualizer()
        self.visualizer.dataset_meta = meta

    def predict(self, image: np.ndarray) -> Any:
        """Returns mmdet's ``DetDataSample`` of an image, (H, W, 3) in BGR order."""
        from mmdet.apis import inference_detector

        return inference_detector(self.model, image).cpu()

    def result(self, sample: Any) -> list[dict[str, Any]]:
        """The objects, the highest score first; a box is (left, top, right, bottom) in pixels."""
        found = sample.pred_instances
        found = found[found.scores >= self.threshold]
        return [
            dict(name=_name(label, self.classes), score=score, box=box)
            for label, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True
            )
        ]

    def summary(self, result: list[dict[str, Any]]) -> str:
        """One line for a result."""
        counts = Counter(each["name"] for each in result)
        return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "nothing found"

    def draw(self, image: np.ndarray, sample: Any, file: str) -> None:
        """Writes the image with the objects drawn on it."""
        self.visualizer.add_datasample(
            Path(file).stem,
            image[..., ::-1],
            sample,
            draw_gt=False,
            pred_score_thr=self.threshold,
            out_file=file,
        )


class Segmentor:
    """Predicts with a segmentor of mmseg.

    Args:
        model: The model in eval mode, with its weights.
        config: The config that it was built from.
        meta: ``dataset_meta`` of the checkpoint; ``classes`` and ``palette`` name and color the
            classes.
        threshold: No effect: every pixel has one class.
    """

    def __init__(self, model: Any, config: Config, meta: dict, threshold: float) -> None:
        from mmseg.visualization import SegLocalVisualizer

        self.model = model
        self.classes = meta.get("classes") or [str(i) for i in range(model.out_channels)]
        model.cfg = config  # where inference_model looks for the pipeline
        self.visualizer = SegLocalVisualizer(alpha=0.5)
        palette = meta.get("palette") or _colors(len(self.classes))
        self.visualizer.set_dataset_meta(self.classes, palette)

    def predict(self, image: np.ndarray) -> Any:
        """Returns mmseg's ``SegDataSample`` of an image, (H, W, 3) in BGR order."""
        from mmseg.apis import inference_model

        return inference_model(self.model, image).cpu()

    def result(self, sample: Any) -> dict[str, float]:
        """The share of the pixels that each class has, the largest first."""
        labels, counts = sample.pred_sem_seg.data.unique(return_counts=True)
        shares = counts / counts.sum()
        order = shares.argsort(descending=True)
        return {_name(int(labels[i]), self.classes): float(shares[i]) for i in order}

    def summary(self, result: dict[str, float]) -> str:
        """One line for a result."""
        return ", ".join(f"{share:.1%} {name}" for name, share in result.items())

    def draw(self, image: np.ndarray, sample: Any, file: str) -> None:
        """Writes the image with the classes' colors over it."""
        self.visualizer.add_datasample(
            Path(file).stem, image[..., ::-1], sample, draw_gt=False, out_file=file
        )


def _colors(count: int) -> list[list[int]]:
    """A color for each class, the same in every run."""
    return np.random.default_rng(0).integers(0, 256, (count, 3)).tolist()


# By the library that a config is written for.
PREDICTORS: dict[str, Any] = {
    "mmpretrain": Classifier,
    "mmdet": Detector,
    "mmseg": Segmentor,
}


def _name(label: int, classes: Sequence[str] | None) -> str:
    return str(label) if classes is None else str(classes[label])


if __name__ == "__main__":
    sys.exit(run(main))
