r"""Time whole models and measure their memory, on random images.

Several models are timed in turns in one process, so that whatever else the machine does falls on
all of them; the ratio is to the first, which is a peer where there is one. A step is inference
(with a detector's box selection), with --train forward, backward and optimizer step. Memory is the
peak that one step adds to the model: of the device's allocator on a GPU, of the resident set on
Linux without one. Saved are the activations that a training step keeps for its backward pass.

With --plain, or a --peer, a step has no preprocessing or postprocessing: a classifier's scores of
float images that are on the device, with --train cross entropy, backward and SGD with momentum.
With --onnx, the models are exported, and ONNX Runtime gives the scores on the CPU.
With --deploy, their batch norms are folded into the convolutions first.

    python tools/benchmarks/benchmark_model.py configs/rednet50_imagenet.py \
        --peer torchvision.models:resnet50 --batch-size 8 --threads 2
    python tools/benchmarks/benchmark_model.py configs/rednet50_imagenet.py \
        --peer torchvision.models:resnet50 --device cuda --batch-size 128 --train --amp \
        --channels-last
    python tools/benchmarks/benchmark_model.py configs/rednet50_imagenet.py \
        --peer torchvision.models:resnet50 --batch-size 8 --threads 2 --onnx
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from timing import (
    Action,
    Clock,
    add_arguments,
    describe_machine,
    in_mib,
    in_words,
    load_peer,
    peak_memory,
    saved_activations,
    set_up,
    table_head,
    table_row,
    write_results,
)
from torch import Tensor, nn

from rednet.cli.arguments import add_config_options, image_size, positive
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.model import build_model, image_channels, scope_of
from rednet.cli.random_batch import random_batch
from rednet.deploy import switch_to_deploy
from rednet.deploy.onnx import export_onnx, open_session, random_images
from rednet.errors import UserError

PLAIN_OPTIMIZER = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
)
AMP = "AmpOptimWrapper"
AMP_DTYPES = {"cuda": torch.float16, "cpu": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the arguments ask for, and prints a table."""
    args = _parse(arguments)
    set_up(args)
    steps = _steps(args)
    times = Clock(args.device).interleaved(steps, args.turns)
    rows = [
        dict(
            model=name,
            milliseconds=times[name].median,
            best_milliseconds=times[name].best,
            peak_bytes=peak_memory(step, args.device),
            saved_bytes=saved_activations(step) if args.train else None,
        )
        for name, step in steps.items()
    ]
    machine = describe_machine(args.device)
    if args.onnx:
        machine["onnxruntime"] = version("onnxruntime")
    print(f"{in_words(machine)}\n{_what(args)}\n\n{_table(rows, args)}")
    if args.out:
        write_results(args.out, machine, args, rows)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", metavar="config", help="config files")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="SOURCE:NAME",
        help="SOURCE is a .py file or a module, NAME in it makes a classifier without arguments; "
        "may be repeated",
    )
    _add_form_options(parser)
    parser.add_argument(
        "--batch-size", type=positive, default=1, help="images in a batch (%(default)s)"
    )
    parser.add_argument(
        "--shape",
        type=positive,
        nargs="+",
        metavar="PIXELS",
        help="height and width, or one number for both, of the images (224 224; for detectors 800 "
        "1280, for segmentors 1024 2048)",
    )
    _add_onnx_options(parser)
    add_config_options(parser)
    add_arguments(parser, turns=10)
    args = parser.parse_args(arguments)
    _check(parser, args)
    args.plain |= bool(args.peer) or args.onnx
    return args


def _add_form_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plain", action="store_true", help="no pre- or postprocessing")
    parser.add_argument(
        "--compile",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="torch.compile in this mode, of classifiers without pre- and postprocessing",
    )
    parser.add_argument("--train", action="store_true", help="time training steps")
    parser.add_argument(
        "--deploy",
        action="store_true",
        help="in the form of switch_to_deploy.py: batch norms are folded into convolutions",
    )
    parser.add_argument("--amp", action="store_true", help="float16 on a GPU, bfloat16 on a CPU")


def _add_onnx_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--onnx", action="store_true", help="time ONNX Runtime, on the CPU")
    parser.add_argument(
        "--custom-operator",
        metavar="LIBRARY",
        help="with --onnx: involution is the operator of this library of build_onnx_operator.py",
    )


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.configs and not args.peer:
        parser.error("expected a config or a --peer")
    if args.compile and not (args.plain or args.peer):
        parser.error("--compile goes with --plain or a --peer")
    if args.deploy and args.train:
        parser.error("--deploy is for inference")
    eager = not (args.train or args.amp or args.channels_last or args.compile)
    if args.onnx and not (eager and args.device.type == "cpu"):
        parser.error("--onnx times inference in float32, contiguous, on the CPU")
    if args.custom_operator and not args.onnx:
        parser.error("--custom-operator needs --onnx")


# ---- the steps


def _steps(args: argparse.Namespace) -> dict[str, Action]:
    """One step of each model, by the model's name."""
    steps: dict[str, Action] = {}
    for address in args.peer:
        name, factory = load_peer(address)
        steps[name] = _step_of_classifier(_placed(factory(), args), args)
    for path in args.configs:
        config = read_config(path, args.cfg_options)[0]
        name = Path(path).stem
        steps[path if name in steps else name] = (_plain_step if args.plain else _step)(
            config, args
        )
    return steps


def _step(config: Config, args: argparse.Namespace) -> Action:
    """The step of mmengine, from images in bytes to predictions or to new weights."""
    scope = scope_of(config)
    if args.amp and scope == "mmdet" and args.device.type == "cpu":
        raise UserError("--amp: a detector needs a GPU for it, mmcv's NMS takes no bfloat16")
    model: Any = _placed(build_model(config), args)
    sizes = [image_size(args.shape, scope)] * args.batch_size
    data = random_batch(scope, sizes, channels=image_channels(model))

    def infer() -> object:
        with torch.no_grad(), _autocast(args):
            return model.test_step(copy.deepcopy(data))

    if not args.train:
        return infer
    optimizer = _optimizer(model, config.optim_wrapper, args)

    def train() -> object:
        with nullcontext() if isinstance(optimizer, AmpOptimWrapper) else _autocast(args):
            return model.train_step(copy.deepcopy(data), optimizer)

    return train


def _plain_step(config: Config, args: argparse.Namespace) -> Action:
    if scope_of(config) != "mmpretrain":
        raise UserError("--plain and --peer are for classifiers, of mmpretrain or without a config")
    return _step_of_classifier(_placed(build_model(config), args), args, mode="tensor")


def _step_of_classifier(model: nn.Module, args: argparse.Namespace, **options: Any) -> Action:
    """Scores of random images, or a training step on them."""
    if args.onnx:
        return _scores_of_onnx(model, args)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    shape = (args.batch_size, image_channels(model), *image_size(args.shape))
    images = torch.randn(shape, device=args.device)
    images = images.contiguous(memory_format=layout)
    scores: Any = torch.compile(model, mode=args.compile) if args.compile else model

    def infer() -> Tensor:
        with torch.no_grad(), _autocast(args):
            return scores(images, **options)

    if not args.train:
        return infer
    optimizer = _optimizer(model, PLAIN_OPTIMIZER, args)
    labels = infer().argmax(dim=1)

    def train() -> None:
        with optimizer.optim_context(model), _autocast(args):
            loss = F.cross_entropy(scores(images, **options), labels)
        optimizer.update_params(loss)

    return train


def _scores_of_onnx(model: nn.Module, args: argparse.Namespace) -> Action:
    channels, size = image_channels(model), image_size(args.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        custom = args.custom_operator is not None
        export_onnx(model, path, random_images((2, channels, *size)), custom_operator=custom)
        session = open_session(path, args.custom_operator, args.threads or 0)
    images = {"image": random_images((args.batch_size, channels, *size)).numpy()}
    return lambda: session.run(None, images)


def _placed(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    if args.deploy:
        model = switch_to_deploy(model)
    model = model.to(args.device).train(args.train)
    layout = torch.channels_last if args.channels_last else torch.preserve_format
    return model.to(memory_format=layout)


def _autocast(args: argparse.Namespace) -> AbstractContextManager:
    kind = args.device.type
    return torch.autocast(kind, dtype=AMP_DTYPES[kind], enabled=args.amp)


def _optimizer(model: nn.Module, config: Mapping, args: argparse.Namespace) -> OptimWrapper:
    """As the config has it, with --amp on a GPU with scaled gradients, which float16 needs."""
    scaled = args.amp and args.device.type == "cuda"
    return build_optim_wrapper(model, {**config, "type": AMP} if scaled else dict(config))


# ---- the table


def _table(rows: Sequence[Mapping], args: argparse.Namespace) -> str:
    lines = [table_head("model", "ms", "best ms", "ratio", "images/s", "MiB", "saved MiB")]
    for row in rows:
        milliseconds = row["milliseconds"]
        lines.append(
            table_row(
                row["model"],
                f"{milliseconds:.1f}",
                f"{row['best_milliseconds']:.1f}",
                f"{milliseconds / rows[0]['milliseconds']:.2f}",
                f"{args.batch_size / milliseconds * 1e3:.2f}",
                in_mib(row["peak_bytes"]),
                in_mib(row["saved_bytes"]),
            )
        )
    return "\n".join(lines)


def _what(args: argparse.Namespace) -> str:
    """One line on what was timed."""
    dtype = str(AMP_DTYPES[args.device.type] if args.amp else torch.float32)
    words = [
        "training step" if args.train else "inference",
        *(["plain"] if args.plain else []),
        *(["deployed"] if args.deploy else []),
        *([f"compiled ({args.compile})"] if args.compile else []),
        *(["ONNX Runtime"] if args.onnx else []),
        *(["custom operator"] if args.custom_operator else []),
        f"batch {args.batch_size}",
        dtype.removeprefix("torch."),
        "channels_last" if args.channels_last else "contiguous",
    ]
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(run(main))
