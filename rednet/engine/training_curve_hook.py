"""A picture of a training: loss, validation metrics and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.runner import EpochBasedTrainLoop, Runner

from rednet.engine.picture_hook import PictureHook
from rednet.registry import HOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    # positions along the training, and the values there
    Curve = tuple[np.ndarray, np.ndarray]

# The scalar in which the message hub, and so every checkpoint, keeps when the validations were.
VAL_ITER = "curve/val_iter"
NOT_METRICS = ("val/time", "val/data_time")
COLORS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#2e4057")
# Width of the window that smooths the loss, as a share of the training.
SMOOTHING_SHARE = 0.02


@HOOKS.register_module()
class TrainingCurveHook(PictureHook):
    """Draws loss, validation metrics and learning rate as ``training_curve.png`` in the work dir.

    The values are those of mmengine's log, which checkpoints keep: a resumed training has its whole
    curve, except perhaps the validation right after the checkpoint was saved.

    Args:
        metrics: Names of the validation metrics to draw, without ``val/``; all scalars by default.
        filename: Name of the picture.
        interval: Draw after every ``interval``-th validation. The end of the training always draws.
    """

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        filename: str = "training_curve.png",
        interval: int = 10,
    ) -> None:
        super().__init__(filename, interval)
        self.metrics = metrics

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Records the iteration of the validation."""
        if self.training:
            runner.message_hub.update_scalar(VAL_ITER, runner.iter)
        super().after_val_epoch(runner, metrics)

    def draw(self, runner: Runner, path: Path) -> None:
        """Draws three panels, over epochs if the training loop counts epochs, else iterations."""
        from matplotlib.figure import Figure

        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        unit = len(runner.train_dataloader) if by_epoch else 1
        log = {name: buffer.data[0] for name, buffer in runner.message_hub.log_scalars.items()}

        figure = Figure(figsize=(8, 8), layout="constrained")
        figure.suptitle(Path(runner.work_dir).name, fontsize=11, color="#555555")
        loss, metrics, rate = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.5))
        for axes, title in (
            (loss, "Training loss"),
            (metrics, "Validation"),
            (rate, "Learning rate"),
        ):
            _dress(axes, title)
        _plot_loss(loss, _every_iteration(log, "train/loss", runner.iter, unit))
        _plot_metrics(metrics, self._metric_curves(log, unit))
        rate.plot(*_every_iteration(log, "train/lr", runner.iter, unit), color=COLORS[0])
        rate.set_xlabel("epoch" if by_epoch else "iteration")
        rate.xaxis.get_major_locator().set_params(integer=True)
        rate.set_xlim(left=0)
        rate.set_ylim(bottom=0)
        figure.savefig(path, dpi=150)

    def _metric_curves(self, log: Mapping[str, np.ndarray], unit: int) -> dict[str, Curve]:
        names = [name for name in log if name.startswith("val/") and name not in NOT_METRICS]
        if self.metrics is not None:
            names = [f"val/{name}" for name in self.metrics if f"val/{name}" in log]
        positions = log.get(VAL_ITER, np.empty(0)) / unit
        return {name.removeprefix("val/"): _common_end(positions, log[name]) for name in names}


def _every_iteration(log: Mapping[str, np.ndarray], name: str, iterations: int, unit: int) -> Curve:
    """The curve of a value logged in every iteration. A long log may have lost its start."""
    values = log.get(name, np.empty(0))
    return np.arange(iterations - len(values) + 1, iterations + 1) / unit, values


def _common_end(positions: np.ndarray, values: np.ndarray) -> Curve:
    """The common end of both. A run without this hook may have left values without positions."""
    length = min(len(positions), len(values))
    return positions[len(positions) - length :], values[len(values) - length :]


def _plot_loss(axes: Axes, curve: Curve) -> None:
    positions, loss = curve
    window = max(1, round(SMOOTHING_SHARE * len(loss)))
    axes.plot(positions, loss, color=COLORS[0], alpha=0.25, label="each iteration")
    if window > 1:
        smooth = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        label = f"mean of {window} iterations"
        middles = positions[window // 2 : window // 2 + len(smooth)]
        axes.plot(middles, smooth, color=COLORS[0], label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _plot_metrics(axes: Axes, curves: Mapping[str, Curve]) -> None:
    drawn = {name: curve for name, curve in curves.items() if len(curve[0])}
    for index, (name, (positions, values)) in enumerate(drawn.items(), start=1):
        best = int(np.argmax(values))
        color = COLORS[index % len(COLORS)]
        label = f"{name}: best {values[best]:.4g}, last {values[-1]:.4g}"
        axes.plot(positions, values, color=color, marker=".", label=label)
        axes.plot(positions[best], values[best], color=color, marker="o", markersize=9, mfc="none")
    if drawn:
        axes.legend(frameon=False, loc="lower right")
    else:
        axes.text(0.5, 0.5, "none yet", transform=axes.transAxes, ha="center", color="#999999")


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
