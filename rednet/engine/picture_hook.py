"""Base of the hooks that save a picture in the work directory."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner


class PictureHook(Hook):
    """Saves a picture in the work directory, during training and at the end.

    Subclasses define :meth:`draw`.

    Args:
        filename: Name of the picture in the work directory.
        interval: Draw after every ``interval``-th validation. The end of the training always draws.
    """

    priority = "LOW"

    def __init__(self, filename: str, interval: int = 10) -> None:
        self.filename = filename
        self.interval = interval
        self.training = False
        self.validations = 0

    def draw(self, runner: Runner, path: Path) -> None:
        """Saves the picture at ``path`` if there is anything to draw."""
        raise NotImplementedError

    def before_train(self, runner: Runner) -> None:
        """Resets the count of validations."""
        self.training = True
        self.validations = 0

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draws after every ``interval``-th validation of a training."""
        self.validations += 1
        if self.training and self.validations % self.interval == 0:
            self._save(runner)

    def after_train(self, runner: Runner) -> None:
        """Draws the whole training."""
        self._save(runner)
        self.training = False

    def _save(self, runner: Runner) -> None:
        if is_main_process():
            self.draw(runner, Path(runner.work_dir) / self.filename)
