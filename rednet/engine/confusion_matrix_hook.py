"""A picture of the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import Tensor

from rednet.engine.picture_hook import PictureHook
from rednet.registry import HOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGEST_WITH_NUMBERS = 30
SHORT_NAME = 3


@HOOKS.register_module()
class ConfusionMatrixHook(PictureHook):
    """Draws the last confusion matrix as ``confusion_matrix.png`` in the work directory.

    mmpretrain's ``ConfusionMatrix`` metric computes and draws it.

    Args:
        filename: Name of the picture.
        interval: Validations between two drawings; the end of the training always draws.
    """

    def __init__(self, filename: str = "confusion_matrix.png", interval: int = 10) -> None:
        super().__init__(filename, interval)
        self.metric: BaseMetric | None = None
        self.matrix: Tensor | None = None

    def before_val_epoch(self, runner: Runner) -> None:
        """Starts an empty matrix."""
        self.metric = METRICS.build(dict(type="mmpretrain.ConfusionMatrix"))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Adds a batch of predictions."""
        if self.metric is not None and outputs is not None:
            self.metric.process(data_batch, [sample.to_dict() for sample in outputs])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Sums the matrix up over all processes."""
        if self.metric is not None:
            size = len(runner.val_dataloader.dataset)
            self.matrix = self.metric.evaluate(size)["confusion_matrix/result"]
        super().after_val_epoch(runner, metrics)

    def draw(self, runner: Runner, path: Path) -> None:
        """Draws true classes down and predicted classes across."""
        if self.metric is None or self.matrix is None:
            return
        from matplotlib import pyplot

        classes = list(runner.val_dataloader.dataset.metainfo.get("classes", ()))
        numbers = len(self.matrix) <= LARGEST_WITH_NUMBERS
        figure = self.metric.plot(
            self.matrix,
            include_values=numbers,
            classes=classes if numbers else None,
            cmap="Blues",
            colorbar=not numbers,
            show=False,
        )
        right, total = int(self.matrix.diagonal().sum()), int(self.matrix.sum())
        axes = figure.axes[0]
        axes.set_title(f"Validation: {right} of {total} right ({right / total:.2%})", pad=30)
        if all(len(name) <= SHORT_NAME for name in classes):
            axes.tick_params(axis="x", labelrotation=0)
        _bring_out_the_few(axes)
        figure.savefig(path, dpi=120, bbox_inches="tight")
        pyplot.close(figure)


def _bring_out_the_few(axes: Axes) -> None:
    """Makes a single wrong image visible among hundreds of right ones."""
    from matplotlib.colors import PowerNorm

    axes.images[0].set_norm(PowerNorm(0.5))
    for text in axes.texts:
        if text.get_text() == "0":
            text.set_color("#c3d3e3")
