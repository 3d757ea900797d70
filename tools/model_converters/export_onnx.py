"""Export a classifier or a backbone to ONNX and check it in ONNX Runtime.

The graph has standard operators only, of opset 17 or, with --exporter dynamo, 18, unless --opset
names another. Its batch size is free, and so are height and width unless --fixed-size is given.
ONNX Runtime's outputs on images of several sizes are compared with those of the model in float64:
if they are off by more than 1e-5 of their norm, and by more than PyTorch's own rounding explains,
nothing is written. The images are smooth and normalized as the config says. The data preprocessor
(normalization) is not part of the graph.

With --custom-operator, involution is one operator of our own, many times faster in ONNX Runtime;
build_onnx_operator.py makes the library that it needs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import Tensor, nn

from rednet.checkpoint.reading import require_weights_only
from rednet.cli.arguments import config_parser, image_size
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.failures import setting_up
from rednet.cli.model import (
    build_model,
    image_channels,
    load_weights,
    scope_of,
    with_preprocessor,
)
from rednet.cli.paths import check_checkpoint, check_output
from rednet.deploy.onnx import EXPORTERS, Graph, compare_onnx, export_onnx, random_images
from rednet.errors import UserError
from rednet.files import failing_as_user_error
from rednet.models.init_cfg import as_list, is_pretrained


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports what the arguments name."""
    args = _parse(arguments)
    size = image_size(args.shape)
    check_output(args.out, "--out", sources=(args.config, args.checkpoint))
    config, _ = read_config(args.config, args.cfg_options)
    model = _build(config, args)
    images = partial(_images, image_channels(model), _normalization(config))
    target = Path(args.out)
    with failing_as_user_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it gets there in one step, when it has been checked.
    with (
        failing_as_user_error(target),
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
    ):
        path = Path(folder, target.name)
        graph = export_onnx(
            model,
            path,
            images(2, *size),
            exporter=args.exporter,
            dynamic_size=not args.fixed_size,
            opset=args.opset,
            custom_operator=args.custom_operator is not None,
        )
        print(_describe(graph, path))
        for batch, height, width in _shapes_to_compare(size, args.fixed_size):
            _compare(model, path, images(batch, height, width), args.custom_operator)
        os.replace(path, target)
    print(f"wrote {target}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument(
        "checkpoint", nargs="?", help="checkpoint file (else init_cfg's or random weights)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the ONNX file to write")
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="height and width, or one number for both, of the images that the model is recorded "
        "with (224 224)",
    )
    parser.add_argument(
        "--backbone",
        action="store_true",
        help="export the backbone only: the way for detectors. The checkpoint is the whole model's",
    )
    parser.add_argument(
        "--fixed-size", action="store_true", help="accept images of this height and width only"
    )
    _add_operator_options(parser)
    return parser.parse_args(arguments)


def _add_operator_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exporter",
        choices=EXPORTERS,
        default=EXPORTERS[0],
        help="PyTorch's exporter: torchscript is many times faster, dynamo's graph is smaller",
    )
    parser.add_argument(
        "--opset",
        type=int,
        choices=range(11, 21),
        metavar="VERSION",
        help="version of the standard operators, 11 to 20; dynamo writes 18 to 20 (17, or 18 where "
        "dynamo can write no older one)",
    )
    parser.add_argument(
        "--custom-operator",
        metavar="LIBRARY",
        help="write involution as the operator rednet::Involution2d, which runs in ONNX Runtime "
        "with this library of build_onnx_operator.py",
    )


def _build(config: Config, args: argparse.Namespace) -> nn.Module:
    if args.checkpoint is not None:
        check_checkpoint(args.checkpoint, "the checkpoint")
    require_weights_only()
    if not args.backbone:
        _check_kind(config)
    model = build_model(config)
    if args.checkpoint is not None:
        load_weights(model, args.checkpoint)
    elif isinstance(model, BaseModule) and _names_weights(model):
        with setting_up():
            model.init_weights()
        print("no checkpoint: the weights are those that init_cfg names, and otherwise random")
    else:
        print("no checkpoint: the weights are random")
    return _backbone(model) if args.backbone else model


def _names_weights(model: nn.Module) -> bool:
    """Whether an ``init_cfg`` names a checkpoint; our configs leave the name to the user."""
    return any(
        is_pretrained(entry) and entry.get("checkpoint")
        for module in model.modules()
        for entry in as_list(getattr(module, "init_cfg", None))
    )


def _backbone(model: nn.Module) -> nn.Module:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UserError(f"--backbone: {type(model).__name__} has no backbone to export")
    return backbone


def _check_kind(config: Config) -> None:
    if "model" not in config:
        raise UserError("the config has no model to export")
    if scope_of(config) == "mmdet":
        raise UserError(
            f"detectors, such as this {config.model.type}, are not supported: their proposals and "
            "their suppression of overlapping boxes are not a plain graph. --backbone exports the "
            "backbone"
        )


def _describe(graph: Graph, path: Path) -> str:
    shapes = [
        f"  {name}: {' x '.join(map(str, shape))}"
        for name, shape in (*graph.inputs.items(), *graph.outputs.items())
    ]
    size = path.stat().st_size / 1e6
    return "\n".join([f"opset {graph.opset}, {graph.nodes} nodes, {size:.1f} MB", *shapes])


def _normalization(config: Config) -> dict[str, Tensor]:
    """Mean and standard deviation by which the config normalizes pixels, if it does."""
    preprocessor = with_preprocessor(config).model.get("data_preprocessor") or {}
    given = {name: preprocessor.get(name) for name in ("mean", "std")}
    if any(value is None for value in given.values()):
        return {}
    return {name: torch.tensor(value).view(-1, 1, 1) for name, value in given.items()}


def _images(
    channels: int, normalization: dict[str, Tensor], batch: int, height: int, width: int
) -> Tensor:
    return random_images((batch, channels, height, width), **normalization)


def _compare(model: nn.Module, path: Path, images: Tensor, library: str | None) -> None:
    found = compare_onnx(model, path, images, library)
    text = " x ".join(map(str, images.shape))
    if not found.agrees:
        raise UserError(
            f"ONNX Runtime's output on images of {text} is off by {found.exported:.2g} of its "
            f"norm, allowed are {found.allowed:.1g}: the file is not written. --exporter or "
            "--fixed-size may help"
        )
    print(
        f"relative error {found.exported:.1e} on images of {text} (PyTorch's: {found.original:.1e})"
    )


def _shapes_to_compare(size: tuple[int, int], fixed_size: bool) -> list[tuple[int, int, int]]:
    """Other batches than the recorded one; two odd sizes too, where the size is free."""
    height, width = size
    shapes = [(1, height, width), (3, height, width)]
    if not fixed_size:
        shapes.append((2, height * 3 // 2 // 2 * 2 + 1, width * 2 // 3 // 2 * 2 + 1))
        shapes.append((1, height * 2 // 3 // 2 * 2 + 1, width + 2))
    return shapes


if __name__ == "__main__":
    sys.exit(run(main))
