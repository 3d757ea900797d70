"""Fuse a trained model for inference and write it as a checkpoint and a config.

Batch norms are folded into the convolutions before them, and layers whose kernels are constant
after training become plain convolutions; the outputs are checked to agree. OUT_PREFIX.py wraps the
model's config in dict(type='Deployed', module=...), which builds the fused form, and
OUT_PREFIX.pth holds its weights: both work with tools/test.py and with mmengine's Runner.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from rednet import switch_to_deploy
from rednet.checkpoint.reading import require_weights_only
from rednet.checkpoint.writing import write_checkpoint
from rednet.cli.arguments import config_parser, image_size
from rednet.cli.command import run
from rednet.cli.config import import_rednet, read_config
from rednet.cli.model import build_model, image_channels, load_weights, with_preprocessor
from rednet.cli.paths import check_checkpoint, check_output
from rednet.errors import DifferentOutputError
from rednet.files import write_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuses what the arguments name."""
    args = _parse(arguments)
    check_checkpoint(args.checkpoint, "the checkpoint")
    for suffix in (".pth", ".py"):
        path = args.out_prefix + suffix
        check_output(path, "the output", sources=(args.config, args.checkpoint))
    require_weights_only()
    config, _ = read_config(args.config, args.cfg_options)
    model = build_model(with_preprocessor(config))
    images = torch.rand(2, image_channels(model), *image_size(args.shape))
    meta = _load(model, args.checkpoint)
    before = _size(model)
    fused = switch_to_deploy(model, lambda model: _features(model, images))
    checkpoint, deployed = f"{args.out_prefix}.pth", f"{args.out_prefix}.py"
    text = _config_text(config, checkpoint)
    _check(fused, text, images, deployed)
    write_checkpoint(checkpoint, {"meta": meta, "state_dict": fused.state_dict()})
    write_file(deployed, text.encode())
    print(f"{before}\n-> {_size(fused)}\nwrote {deployed} and {checkpoint}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint file of the trained model")
    parser.add_argument("out_prefix", help="path of the two files to write, without their suffixes")
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="height and width, or one number for both, of the random images on which the outputs "
        "are compared (224 224)",
    )
    return parser.parse_args(arguments)


def _load(model: nn.Module, path: str) -> dict[str, Any]:
    """Loads a checkpoint that must fit exactly; returns what it says about the data."""
    meta = load_weights(model, path).get("meta") or {}
    return {key: meta[key] for key in ("dataset_meta",) if key in meta}


def _size(model: nn.Module) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    norms = sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules())
    return f"{parameters:,} parameters, {norms} batch norms"


def _features(model: nn.Module, images: Tensor) -> Any:
    return getattr(model, "extract_feat", model)(images)


def _config_text(config: Config, checkpoint: str) -> str:
    """The config of the fused model."""
    config = Config(config.to_dict())
    config.model = dict(type="Deployed", module=config.model)
    config.load_from, config.resume = checkpoint, False
    import_rednet(config)
    return config.pretty_text


def _check(model: nn.Module, text: str, images: Tensor, path: str) -> None:
    """Builds the model from what will be written, before any file is."""
    written = build_model(with_preprocessor(Config.fromstring(text, ".py")))
    try:
        written.load_state_dict(model.state_dict(), strict=True)
        with torch.no_grad():
            torch.testing.assert_close(_features(written, images), _features(model, images))
    except (RuntimeError, AssertionError) as error:
        raise DifferentOutputError(
            f"what {path} would build differs from the fused model, so nothing is written: {error}"
        ) from error


if __name__ == "__main__":
    sys.exit(run(main))
