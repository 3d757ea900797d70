"""The schedule of the temperature of dynamic convolution layers."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import nn

from rednet.arguments import positive_int, positive_number
from rednet.registry import HOOKS

# The scalar of the message hub, and so of the log and the visualizer.
TEMPERATURE = "train/temperature"


@HOOKS.register_module()
class TemperatureAnnealHook(Hook):
    """Lowers the temperature of dynamic convolution layers linearly, iteration by iteration.

    A high temperature makes a layer mix its kernels in nearly equal parts, so that all of them
    learn from the start. The temperature depends only on the number of the iteration, so a resumed
    training continues where it was. It is part of the layers' state_dict, so a checkpoint is always
    evaluated at the temperature at which it was trained. The log shows it as ``temperature``.

    It applies to every module that has ``set_temperature``, in wrapped models as well
    (``DistributedDataParallel`` ...), and warns if there is none. The averaged model of an
    ``EMAHook`` has the training's temperature too, even with ``update_buffers=True``.

    From `Dynamic Convolution: Attention over Convolution Kernels
    <https://arxiv.org/abs/1912.03458>`_.

    Args:
        start: Temperature before the first iteration, which already has one step less, as in the
            published code.
        end: Temperature from the end of the schedule on.
        epochs: Length of the schedule in passes over the training data.
        iterations: Length of the schedule in iterations, in place of ``epochs``, for a training
            that counts those.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If a temperature or a length is not above 0.

    Examples:
        >>> custom_hooks = [dict(type='TemperatureAnnealHook', start=30, epochs=10)]
    """

    # After EMAHook, which may have averaged the temperature, and before CheckpointHook.
    priority = "LOW"

    def __init__(
        self,
        start: float = 30.0,
        end: float = 1.0,
        epochs: int = 10,
        iterations: int | None = None,
    ) -> None:
        self.start = positive_number("start", start)
        self.end = positive_number("end", end)
        self.epochs = positive_int("epochs", epochs)
        self.iterations = None if iterations is None else positive_int("iterations", iterations)
        self._layers: list[Any] = []
        self._averaged_layers: list[Any] = []
        self._length = 0

    def before_train(self, runner: Runner) -> None:
        """Finds the layers and the schedule's length."""
        self._layers = layers_with_temperature(runner.model)
        self._averaged_layers = [
            layer
            for hook in runner.hooks
            if isinstance(hook, EMAHook)
            for layer in layers_with_temperature(hook.ema_model)
        ]
        self._length = self.iterations or self.epochs * len(runner.train_dataloader)
        if not self._layers:
            runner.logger.warning(
                f"TemperatureAnnealHook has no effect: no module of {type(runner.model).__name__} "
                f"has set_temperature, as ODConv2d, CondConv2d and DynamicConv2d have"
            )

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Sets the iteration's temperature and logs it."""
        temperature = self.temperature(runner.iter)
        for layer in self._layers:
            layer.set_temperature(temperature)
        if self._layers:
            runner.message_hub.update_scalar(TEMPERATURE, temperature)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Sets the iteration's temperature in averaged models, to evaluate and save them at it."""
        for layer in self._averaged_layers:
            layer.set_temperature(self.temperature(runner.iter))

    def temperature(self, iteration: int) -> float:
        """The temperature of an iteration, counted from 0."""
        share = min((iteration + 1) / self._length, 1.0)
        return self.start + (self.end - self.start) * share


def layers_with_temperature(model: nn.Module) -> list[Any]:
    """The modules of a model whose temperature can be set."""
    return [module for module in model.modules() if hasattr(module, "set_temperature")]
