"""Pictures of what the layers compute, while a model trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from rednet.arguments import positive_int
from rednet.errors import ArgumentError
from rednet.layers.base import ConvLayer
from rednet.registry import HOOKS
from rednet.visualization.images import ImageFile, ImageReader, find_images, size_of
from rednet.visualization.report import AttentionReport, pictures_of, weight_pictures
from rednet.visualization.watching import check_points, find_layers, view, weights_of


@HOOKS.register_module()
class LayerVisualizationHook(Hook):
    """Draws what the layers of a model compute from fixed images, every few epochs.

    The pictures are those of ``tools/analysis_tools/visualize_layers.py``. They go to the backends
    of the runner's visualizer: the work directory, TensorBoard, WandB. Only the first process
    draws. The model is in eval mode meanwhile, and its weights, statistics and mode stay as they
    were.

    Args:
        images: Image files, or folders of images; of class folders, the attention is averaged by
            class.
        layers: Regular expression that is searched in the layers' dotted names; all by default.
        points: (x, y) at which to draw kernels, in pixels of the image as the network sees it.
        interval: Epochs between two drawings; iterations in a training that counts those.
        limit: Groups, layers, images or classes in a picture at most.

    Raises:
        TypeError: If ``interval`` or ``limit`` is not an int.
        ArgumentError: If one of them is below 1 or ``images`` is empty; when the training starts,
            if the pattern matches nothing or a point lies outside of an image.
        ImageError: When the training starts, if an image cannot be read.

    Example:
        >>> custom_hooks = [
        ...     dict(type='LayerVisualizationHook', images=['photo.jpg'], layers='layer[34]')
        ... ]
    """

    # After the hooks that change weights or temperatures at the end of an epoch.
    priority = "VERY_LOW"

    def __init__(
        self,
        images: Sequence[str],
        layers: str = "",
        points: Sequence[tuple[int, int]] = (),
        interval: int = 1,
        limit: int = 24,
    ) -> None:
        if isinstance(images, str) or not images:
            raise ArgumentError(f"images must be a list of at least one path, got {images!r}")
        self.images = list(images)
        self.pattern = layers
        self.points = [(int(x), int(y)) for x, y in points]
        self.interval = positive_int("interval", interval)
        self.limit = positive_int("limit", limit)
        self.files: list[ImageFile] = []
        self.samples: list[dict[str, Any]] = []

    def before_train(self, runner: Runner) -> None:
        """Reads the images, so that a mistake shows before the training."""
        find_layers(_unwrapped(runner.model), self.pattern)
        self.files = find_images(self.images)
        reader = ImageReader(runner.cfg)
        self.samples = [reader(file.path) for file in self.files]
        for file, sample in zip(self.files, self.samples, strict=True):
            check_points(self.points, size_of(sample), file.path)

    def after_train_epoch(self, runner: Runner) -> None:
        """Draws after every ``interval``-th epoch."""
        if not _counts_iterations(runner) and self.every_n_epochs(runner, self.interval):
            self._draw(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs: object) -> None:
        """Draws after every ``interval``-th iteration of a training that counts those."""
        if _counts_iterations(runner) and self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    def _draw(self, runner: Runner, step: int) -> None:
        if not is_main_process():
            return
        model = _unwrapped(runner.model)
        layers = find_layers(model, self.pattern)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            self._add_pictures(runner, model, layers, step)
        finally:
            for module, training in modes.items():
                module.training = training

    def _add_pictures(
        self, runner: Runner, model: nn.Module, layers: dict[str, ConvLayer], step: int
    ) -> None:
        report = AttentionReport()
        for index, (file, sample) in enumerate(zip(self.files, self.samples, strict=True)):
            seen = view(model, sample, file.path, layers, self.points)
            report.add(seen, f"{index} {file.path.stem}", file.label)
            for name, picture in pictures_of(seen, self.limit):
                runner.visualizer.add_image(f"{name}.{index}_{file.path.stem}", picture, step)
        for name, picture in (*report.pictures(self.limit), *weight_pictures(weights_of(layers))):
            runner.visualizer.add_image(name, picture, step)


def _counts_iterations(runner: Runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)


def _unwrapped(model: Any) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
