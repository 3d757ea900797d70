"""Train one small network with each convolution layer on a few real digits, under one budget.

The network is a stem, four residual 3 x 3 convolutions of the layer in question, each with a batch
norm, and a linear classifier. It learns from a few images of each class and is tested on all the
others: with all the 1,442 images that usually train, every layer would be right in 98 to 99 of 100
cases. Everything else (images, order, augmentation, steps, optimizer, initialization of the rest)
is the same for all; each seed changes all of it together.

    python tools/benchmarks/compare_layers.py --threads 1
    python tools/benchmarks/compare_layers.py --threads 2 --time

The first command trains. Each layer's results are one JSON file, and a second run trains only what
is missing. The second one times a training step of each layer, all in turns, so that a machine that
slows down slows all of them. Both draw the table (table.md) and the picture (comparison.png) of all
results in the folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import Action, Clock
from torch import Tensor, nn

from rednet import swap_conv
from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.datasets import Digits
from rednet.datasets.digits import SPLITS
from rednet.engine.temperature_hook import layers_with_temperature
from rednet.errors import ArgumentError, UserError
from rednet.flops import count_flops
from rednet.layers.base import registered_layers

CONVOLUTION = "nn.Conv2d"
WIDTH, SIDE, PADDING, BATCH = 32, 16, 2, 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
BUDGET = ("images", "steps", "seeds", "cooling")
LAST_STEPS = 20
TURNS = 40
# The layers whose publication lowers the temperature.
TEMPERED = ("DynamicConv2d", "ODConv2d")
START_TEMPERATURE = 30.0
# What the publication would use in place of a 3 x 3 convolution.
KEYWORDS: dict[str, dict[str, Any]] = {"Involution2d": {"kernel_size": 7}}
Data = tuple[Tensor, Tensor]


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
    """Trains what is missing, or times what was asked for, and shows everything."""
    args = _parse(arguments)
    names = _chosen(args.layers)
    check_output(args.out, "--out", folder=True)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    _check_budgets(names, args)
    data = _load()
    times = args.out / "milliseconds.json"
    if args.time:
        times.write_text(json.dumps(_milliseconds(names, data), indent=1) + "\n")
    else:
        _train_missing(names, data, args)
    results = _results(args.out)
    if not results:
        return
    milliseconds = json.loads(times.read_text()) if times.is_file() else {}
    table = _table(results, milliseconds)
    (args.out / "table.md").write_text(table)
    print(table)
    _draw(results, milliseconds, args.out / "comparison.png")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", help=f"registered types or {CONVOLUTION}; all")
    parser.add_argument("--seeds", type=positive, default=3, help="trainings of each layer")
    parser.add_argument(
        "--images", type=positive, default=20, help="images of each class to train on"
    )
    parser.add_argument("--steps", type=positive, default=300, help="steps of each training")
    parser.add_argument(
        "--cooling",
        type=float,
        default=0.5,
        help="share of the steps in which temperatures fall from 30 to 1 (%(default)s); "
        "publications take 10 of 100 epochs, but a tenth of a few hundred steps is too short",
    )
    parser.add_argument("--threads", type=positive, help="CPU threads; default: PyTorch's choice")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/compare_layers"),
        help="folder for results, table and picture (%(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="train layers that have results as well"
    )
    parser.add_argument("--time", action="store_true", help="time training steps, train nothing")
    return parser.parse_args(arguments)


def _chosen(names: Sequence[str] | None = None) -> list[str]:
    known = [CONVOLUTION, *registered_layers()]
    for name in names or ():
        if name not in known:
            raise ArgumentError(f"--layers must be among {', '.join(known)}, got {name!r}")
    return list(names or known)


def _load() -> Data:
    """All digits, (N, 3, SIDE, SIDE), and their labels, (N,)."""
    digits = [each for split in SPLITS for each in Digits(split=split)]
    images = torch.from_numpy(np.stack([each["img"] for each in digits]))
    images = F.interpolate(images.permute(0, 3, 1, 2).float(), SIDE, mode="bilinear")
    return images / 127.5 - 1, torch.tensor([each["gt_label"] for each in digits])


def _split(data: Data, images_a_class: int, generator: torch.Generator) -> tuple[Data, Data]:
    """Some random images of each class to train on, and all the others to test on."""
    images, labels = data
    order = torch.randperm(len(labels), generator=generator)
    chosen = torch.cat([order[labels[order] == each][:images_a_class] for each in range(10)])
    is_chosen = torch.zeros(len(labels), dtype=torch.bool).index_fill(0, chosen, True)
    return (images[is_chosen], labels[is_chosen]), (images[~is_chosen], labels[~is_chosen])


def _results(folder: Path) -> list[dict[str, Any]]:
    files = (folder / f"{name}.json" for name in _chosen())
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def _check_budgets(names: Sequence[str], args: argparse.Namespace) -> None:
    """Checks that the trainings that will be kept agree, with those to come if there are any."""
    retrained = names if args.overwrite and not args.time else ()
    kept = [result for result in _results(args.out) if result["layer"] not in retrained]
    budgets = {result["layer"]: {key: result.get(key) for key in BUDGET} for result in kept}
    if not args.time:
        budgets["this run"] = {key: getattr(args, key) for key in BUDGET}
    (first, budget), *others = budgets.items() or [("", {})]
    for name, other in others:
        if other != budget:
            raise UserError(
                f"{args.out} holds results that do not compare: {first} was trained with {budget}, "
                f"{name} with {other}. Give another --out, or train all with --overwrite"
            )


# ---- training


def _train_missing(names: Sequence[str], data: Data, args: argparse.Namespace) -> None:
    for name in names:
        file = args.out / f"{name}.json"
        if not file.is_file() or args.overwrite:
            file.write_text(json.dumps(_compare(name, data, args), indent=1) + "\n")


def _compare(name: str, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    accuracies, losses = [], []
    for seed in range(args.seeds):
        generator = torch.Generator().manual_seed(seed)
        train, test = _split(data, args.images, generator)
        torch.manual_seed(seed)
        model = build(name)
        cooling_steps = args.cooling * args.steps if name in TEMPERED else 0.0
        losses.append(_train(model, train, args.steps, generator, cooling_steps))
        accuracies.append(_accuracy(model, *test))
        print(f"{name} seed {seed}: {accuracies[-1]:.2f} %", flush=True)
    cost = count_flops(build(name), data[0][:1])[""]
    return dict(
        layer=name,
        keywords=KEYWORDS.get(name, {}),
        **{key: getattr(args, key) for key in BUDGET},
        accuracies=accuracies,
        final_losses=losses,
        parameters=cost.parameters,
        macs=cost.macs,
    )


def build(name: str) -> Network:
    """The network with this layer for its four convolutions."""
    model = Network()
    if name != CONVOLUTION:
        swap_conv(model, dict(type=name, **KEYWORDS.get(name, {})), include=r"^convs\.")
    return model


def _train(
    model: Network, data: Data, steps: int, generator: torch.Generator, cooling_steps: float
) -> float:
    """Returns the mean loss of the last steps."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    losses = []
    model.train()
    for step in range(steps):
        if cooling_steps:
            temperature = 1 + (START_TEMPERATURE - 1) * max(0.0, 1 - step / cooling_steps)
            for layer in layers_with_temperature(model):
                layer.set_temperature(temperature)
        losses.append(_step(model, optimizer, *_batch(data, generator)))
        schedule.step()
    return statistics.fmean(losses[-LAST_STEPS:])


def _step(
    model: Network, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def _batch(data: Data, generator: torch.Generator) -> Data:
    """Random images, each moved by a random number of pixels; what comes in is black."""
    chosen = torch.randperm(len(data[0]), generator=generator)[:BATCH]
    padded = F.pad(data[0][chosen], [PADDING] * 4, value=-1.0)
    corners = torch.randint(2 * PADDING + 1, (len(chosen), 2), generator=generator).tolist()
    moved = [
        image[:, top : top + SIDE, left : left + SIDE]
        for image, (top, left) in zip(padded, corners, strict=True)
    ]
    return torch.stack(moved), data[1][chosen]


@torch.no_grad()
def _accuracy(model: Network, images: Tensor, labels: Tensor) -> float:
    predicted = model.eval()(images).argmax(1)
    return 100 * (predicted == labels).float().mean().item()


def _milliseconds(names: Sequence[str], data: Data) -> dict[str, float]:
    """The median time of a training step of each layer; they take turns."""
    batch = _batch(data, torch.Generator().manual_seed(0))
    models = {name: build(name).train() for name in names}
    optimizers = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}
    steps: dict[str, Action] = {
        name: partial(_step, model, optimizers[name], *batch) for name, model in models.items()
    }
    times = Clock(torch.device("cpu")).interleaved(steps, TURNS)
    return {name: each.median for name, each in times.items()}


# ---- what is shown


def _table(results: list[dict[str, Any]], milliseconds: dict[str, float]) -> str:
    lines = [
        "| layer | accuracy, % (mean ± deviation) | last loss | parameters | MFLOPs | ms a step |",
        "|---|---|---|---|---|---|",
    ]
    for each in results:
        accuracy = f"{statistics.fmean(each['accuracies']):.2f} ± {_deviation(each):.2f}"
        speed = milliseconds.get(each["layer"])
        lines.append(
            f"| {_label(each)} | {accuracy} | {statistics.fmean(each['final_losses']):.3f} "
            f"| {each['parameters']:,} | {each['macs'] / 1e6:.2f} "
            f"| {'not timed' if speed is None else f'{speed:.1f}'} |"
        )
    return "\n".join(lines) + "\n"


def _deviation(result: dict[str, Any]) -> float:
    values = result["accuracies"]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _label(result: dict[str, Any]) -> str:
    size = result["keywords"].get("kernel_size")
    return result["layer"] + (f" {size} x {size}" if size else "")


def _draw(results: list[dict[str, Any]], milliseconds: dict[str, float], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.45 * len(results) + 1.6), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(2, 1, 1, 1))
    accuracy, parameters, operations, speed = panels
    rows = range(len(results))
    for row, each in zip(rows, results, strict=True):
        color = "#555555" if each["layer"] == CONVOLUTION else "#1f6f8b"
        values = each["accuracies"]
        accuracy.scatter(values, [row] * len(values), s=22, color=color, alpha=0.5, linewidths=0)
        accuracy.plot(statistics.fmean(values), row, "|", color=color, markersize=16, mew=2.5)
        parameters.barh(row, each["parameters"] / 1e3, color=color, height=0.55)
        operations.barh(row, each["macs"] / 1e6, color=color, height=0.55)
        speed.barh(row, milliseconds.get(each["layer"], 0), color=color, height=0.55)
    baseline = next((each for each in results if each["layer"] == CONVOLUTION), None)
    if baseline:
        mean = statistics.fmean(baseline["accuracies"])
        accuracy.axvline(mean, color="#555555", linewidth=0.8, linestyle=":")
    accuracy.set_yticks(rows, [_label(each) for each in results])
    accuracy.invert_yaxis()
    _dress(accuracy, "test accuracy, %\n(dots: seeds, bar: mean)")
    _dress(parameters, "parameters, thousands")
    _dress(operations, "MFLOPs an image")
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
