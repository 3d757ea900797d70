"""Print the parameters and FLOPs of the model of a config.

One multiply-add is one FLOP. Two totals are printed: the plain multiply-adds of convolutions,
involutions and matrix products; and what RedNet's published figures count, which adds one FLOP per
element that a bias is added to, two per element of a batch norm and one per element of a ReLU.
Pooling is in neither. The published figures of the classifiers fit a stem with a 7 x 7 involution:
--cfg-options model.backbone.stem_kernel_size=7.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn

from rednet.cli.arguments import config_parser, image_size
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.model import build_model, image_channels, scope_of
from rednet.flops import ELEMENTWISE, MULTIPLY_ADDS, Cost, count_flops


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what the arguments ask for."""
    args = _parse(arguments)
    config, _ = read_config(args.config, args.cfg_options)
    height, width = image_size(args.shape, scope_of(config))
    model = _build(config, height, width)
    channels = image_channels(model)
    costs = count_flops(model, torch.zeros(1, channels, height, width))
    print(f"{args.config}, input 1 x {channels} x {height} x {width}\n")
    print(_summary(costs[""]))
    if args.table is not None:
        print(f"\n{_table(costs, args.table)}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="height and width of the image, or one number for both (224; for detectors 800 "
        "1280, for segmentors 1024 2048)",
    )
    parser.add_argument(
        "--table",
        type=int,
        nargs="?",
        const=2,
        metavar="DEPTH",
        help="list the modules too, down to this depth of their dotted names (2)",
    )
    return parser.parse_args(arguments)


def _build(config: Config, height: int, width: int) -> nn.Module:
    """Builds the model so that its forward needs only an image, also if it is a detector."""
    model = build_model(config)
    if scope_of(config) == "mmdet":
        size = (height, width)
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
        sample = BaseDataElement(metainfo=dict(meta, scale_factor=(1.0, 1.0)))
        model.forward = partial(model.forward, data_samples=[sample])
    return model


def _summary(cost: Cost) -> str:
    lines = [
        ("parameters", f"{cost.parameters:,}"),
        ("trainable", f"{cost.trainable:,}"),
        ("GFLOPs, published convention", f"{cost.published / 1e9:.3f}"),
        ("GFLOPs, multiply-adds only", f"{cost.macs / 1e9:.3f}"),
        *((f"  {kind}", f"{cost.flops.get(kind, 0) / 1e9:.3f}") for kind in MULTIPLY_ADDS),
        *(
            (f"  {kind} (published only)", f"{cost.flops.get(kind, 0) / 1e9:.3f}")
            for kind in ELEMENTWISE
        ),
    ]
    return _columns(lines)


def _table(costs: Mapping[str, Cost], depth: int) -> str:
    header = ("module", "parameters", "trainable", "MFLOPs", "multiply-adds", "share")
    whole = max(costs[""].published, 1)
    rows = [
        (
            name or "(model)",
            f"{cost.parameters:,}",
            f"{cost.trainable:,}",
            f"{cost.published / 1e6:,.1f}",
            f"{cost.macs / 1e6:,.1f}",
            f"{cost.published / whole:.1%}",
        )
        for name, cost in costs.items()
        if name.count(".") < depth and (cost.parameters or cost.published)
    ]
    return _columns([header, *rows])


def _columns(rows: Iterable[Sequence[str]]) -> str:
    """The rows with their columns aligned, the first to the left."""
    rows = list(rows)
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows
    )


if __name__ == "__main__":
    sys.exit(run(main))
