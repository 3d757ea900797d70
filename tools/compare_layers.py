"""Train one small network with each convolution layer on real digits, under one budget.

The network is a stem, four residual 3 x 3 convolutions of the layer in question, each with a batch
norm, and a linear classifier. Everything else (data, order, augmentation, epochs, optimizer,
initialisation of the rest) is the same for all; each seed changes all of it together.

    python tools/compare_layers.py --out work_dirs/compare_layers

Each layer's results are one JSON file; a second run trains only what is missing, then draws the
table (table.md) and the picture (comparison.png) anew from all that is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rednet import swap_conv
from rednet.datasets import Digits
from rednet.engine.command_line import run
from rednet.engine.complexity import measure
from rednet.engine.temperature_hook import layers_with_temperature
from rednet.errors import ArgumentError, UserError
from rednet.layers.base import ConvLayer
from rednet.registry import CONV_LAYERS

CONVOLUTION = "nn.Conv2d"
WIDTH, SIDE, PADDING, BATCH = 32, 16, 2, 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
# The layers whose publication lowers the temperature; it does so over the first half here.
TEMPERED = ("DynamicConv2d", "ODConv2d")
START_TEMPERATURE = 30.0
# What the publication would use in place of a 3 x 3 convolution.
KEYWORDS: dict[str, dict[str, Any]] = {"Involution2d": {"kernel_size": 7}}
Data = dict[str, tuple[Tensor, Tensor]]


class Network(nn.Module):
    """A stem, four residual convolutions in two resolutions, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, WIDTH), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.convs = nn.ModuleList(_convolution(WIDTH, WIDTH) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) for _ in range(4))
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (N, 3, H, W) to (N, 10)."""
        features = self.stem(image)
        for index, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if index == 2:
                features = F.max_pool2d(features, 2)
            features = F.relu(features + norm(convolution(features)))
        return self.classifier(features.mean((2, 3)))


def _convolution(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing and shows everything."""
    args = _parse(arguments)
    names = _chosen(args.layers)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    budget = dict(epochs=args.epochs, seeds=args.seeds)
    data = {split: _load(split) for split in ("train", "val")}
    for name in names:
        file = args.out / f"{name}.json"
        if not file.is_file() or args.overwrite:
            file.write_text(json.dumps(_compare(name, data, args), indent=1) + "\n")
    results = [json.loads(file.read_text()) for file in sorted(args.out.glob("*.json"))]
    _check_budget(results, budget)
    results.sort(key=lambda each: (each["layer"] != CONVOLUTION, each["layer"]))
    table = _table(results)
    (args.out / "table.md").write_text(table)
    print(table)
    _draw(results, args.out / "comparison.png")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", help=f"registered types or {CONVOLUTION}; all")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each layer")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/compare_layers"))
    parser.add_argument("--overwrite", action="store_true", help="train what is there as well")
    return parser.parse_args(arguments)


def _chosen(names: Sequence[str] | None) -> list[str]:
    known = [CONVOLUTION] + sorted(
        name
        for name, layer in CONV_LAYERS.module_dict.items()
        if isinstance(layer, type) and issubclass(layer, ConvLayer)
    )
    for name in names or ():
        if name not in known:
            raise ArgumentError(f"--layers must be among {', '.join(known)}, got {name!r}")
    return list(names or known)


def _load(split: str) -> tuple[Tensor, Tensor]:
    digits = Digits(split=split)
    images = torch.from_numpy(np.stack([each["img"] for each in digits]))
    labels = torch.tensor([each["gt_label"] for each in digits])
    images = F.interpolate(images.permute(0, 3, 1, 2).float(), SIDE, mode="bilinear")
    return images / 127.5 - 1, labels


def _check_budget(results: list[dict[str, Any]], budget: dict[str, int]) -> None:
    for result in results:
        theirs = {key: result[key] for key in budget}
        if theirs != budget:
            raise UserError(
                f"{result['layer']} was trained with {theirs}, not with {budget}: give another "
                f"--out, or --overwrite"
            )


# ---- training


def _compare(name: str, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    accuracies, losses, milliseconds = [], [], []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        model = build(name)
        loss, step = _train(model, data["train"], args.epochs, name in TEMPERED)
        accuracy = _accuracy(model, *data["val"])
        print(f"{name} seed {seed}: {accuracy:.2f} %, {step:.1f} ms a step", flush=True)
        accuracies.append(accuracy)
        losses.append(loss)
        milliseconds.append(step)
    cost = measure(build(name), data["val"][0][:1])[""]
    return dict(
        layer=name,
        keywords=KEYWORDS.get(name, {}),
        epochs=args.epochs,
        seeds=args.seeds,
        accuracies=accuracies,
        final_losses=losses,
        milliseconds_a_step=milliseconds,
        parameters=cost.parameters,
        macs=cost.macs,
        torch=torch.__version__,
        machine=platform.machine(),
        threads=torch.get_num_threads(),
    )


def build(name: str) -> Network:
    """The network with this layer for its four convolutions."""
    model = Network()
    if name != CONVOLUTION:
        swap_conv(model, dict(type=name, **KEYWORDS.get(name, {})), include=r"^convs\.")
    return model


def _train(
    model: Network, data: tuple[Tensor, Tensor], epochs: int, tempered: bool
) -> tuple[float, float]:
    """Returns the last epoch's mean loss, and the median milliseconds of a step."""
    images, labels = data
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    losses, seconds = [], []
    model.train()
    for step, batch in enumerate(_batches(len(images), epochs)):
        if tempered:
            temperature = 1 + (START_TEMPERATURE - 1) * max(0.0, 1 - 2 * step / steps)
            for layer in layers_with_temperature(model):
                layer.set_temperature(temperature)
        shifted = _shift(images[batch])
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(shifted), labels[batch])
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    return statistics.fmean(losses[-(steps // epochs) :]), 1e3 * statistics.median(seconds)


def _batches(count: int, epochs: int) -> list[Tensor]:
    """Full batches in a new order each epoch."""
    return [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(count).split(BATCH)[: count // BATCH]
    ]


def _shift(images: Tensor) -> Tensor:
    """Moves the batch by a random number of pixels; what comes in is black."""
    top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
    padded = F.pad(images, [PADDING] * 4, value=-1.0)
    return padded[..., top : top + SIDE, left : left + SIDE].contiguous()


@torch.no_grad()
def _accuracy(model: Network, images: Tensor, labels: Tensor) -> float:
    predicted = model.eval()(images).argmax(1)
    return 100 * (predicted == labels).float().mean().item()


# ---- what is shown


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| layer | accuracy, % (mean ± deviation) | last loss | parameters | MFLOPs | ms a step |",
        "|---|---|---|---|---|---|",
    ]
    for each in results:
        accuracy = f"{statistics.fmean(each['accuracies']):.2f} ± {_deviation(each):.2f}"
        lines.append(
            f"| {_label(each)} | {accuracy} | {statistics.fmean(each['final_losses']):.3f} "
            f"| {each['parameters']:,} | {each['macs'] / 1e6:.2f} "
            f"| {min(each['milliseconds_a_step']):.1f} |"
        )
    return "\n".join(lines) + "\n"


def _deviation(result: dict[str, Any]) -> float:
    values = result["accuracies"]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _label(result: dict[str, Any]) -> str:
    size = result["keywords"].get("kernel_size")
    return result["layer"] + (f" {size} x {size}" if size else "")


def _draw(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.45 * len(results) + 1.6), layout="constrained")
    accuracy, parameters, speed = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    rows = range(len(results))
    for row, each in zip(rows, results, strict=True):
        colour = "#555555" if each["layer"] == CONVOLUTION else "#1f6f8b"
        values = each["accuracies"]
        accuracy.scatter(values, [row] * len(values), s=22, color=colour, alpha=0.5, linewidths=0)
        accuracy.plot(statistics.fmean(values), row, "|", color=colour, markersize=16, mew=2.5)
        parameters.barh(row, each["parameters"] / 1e3, color=colour, height=0.55)
        speed.barh(row, min(each["milliseconds_a_step"]), color=colour, height=0.55)
    baseline = next((each for each in results if each["layer"] == CONVOLUTION), None)
    if baseline:
        mean = statistics.fmean(baseline["accuracies"])
        accuracy.axvline(mean, color="#555555", linewidth=0.8, linestyle=":")
    accuracy.set_yticks(rows, [_label(each) for each in results])
    accuracy.invert_yaxis()
    _dress(accuracy, "validation accuracy, %\n(dots: seeds, bar: mean)")
    _dress(parameters, "parameters, thousands")
    _dress(speed, "ms a training step")
    figure.savefig(path, dpi=150)


def _dress(axes: Any, label: str) -> None:
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)


if __name__ == "__main__":
    sys.exit(run(main))
