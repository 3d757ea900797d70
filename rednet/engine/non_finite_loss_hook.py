"""A stop at the first loss that is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_comm_device, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, distributed, nn

from rednet.errors import ArgumentError, UserError
from rednet.registry import HOOKS

ACTIONS = ("stop", "skip")
_SHARDED = "_fsdp_wrapped_module"


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stops a training, or skips the update, where the loss is not finite.

    The optimizer makes no step then, so the weights stay those of the iteration before, and nothing
    is saved after; gradients that were accumulated before are dropped. With several processes all
    of them stop or skip if one of them has such a loss, for which they exchange one number in each
    iteration. It is read when the gradient has been computed, so that nothing waits for a GPU or
    another process between the loss and its gradient; mmengine's logging waits for the losses soon
    after in any case. Models with several optimizers (``OptimWrapperDict``) are not checked.

    Args:
        action: ``'stop'`` raises an error that names the iteration, the loss and the first module
            whose output is not finite, found by a second forward pass of the batch. ``'skip'``
            leaves out the update, warns and counts: the log shows ``skipped_updates``. It stops too
            if a parameter is not finite or a buffer, such as a running mean, is NaN.

    Raises:
        ArgumentError: If the action is unknown.
        UserError: If the training stops.

    Examples:
        >>> custom_hooks = [dict(type='NonFiniteLossHook', action='skip')]
    """

    priority = "VERY_HIGH"

    def __init__(self, action: str = "stop") -> None:
        if action not in ACTIONS:
            raise ArgumentError(f"action must be one of {ACTIONS}, got {action!r}")
        self.action = action
        self.skipped = 0
        self._batch: Any = None
        self._losses: _Losses | None = None  # in an update only

    def before_train(self, runner: Runner) -> None:
        """Lets the optimizer's wrapper check each loss."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            return
        update, step = wrapper.update_params, wrapper.step

        def update_and_check(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            losses = self._losses = _Losses(loss)
            update(loss, *args, **kwargs)
            self._losses = None
            if not losses.are_finite():
                wrapper.zero_grad()
                self._handle(runner, loss)

        def step_if_finite(*args: Any, **kwargs: Any) -> None:
            # A model that steps by itself, without an update, is not checked.
            if self._losses is None or self._losses.are_finite():
                step(*args, **kwargs)

        wrapper.update_params, wrapper.step = update_and_check, step_if_finite

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keeps the batch for a second pass."""
        self._batch = data_batch

    def _handle(self, runner: Runner, loss: Tensor) -> None:
        found = all_gather_object((loss.item(), _damaged(runner.model)))
        losses, damaged = zip(*found, strict=True)
        # Processes normalize their own batches, so one of them may be damaged and another not.
        process = next(rank for rank, each in enumerate(losses) if not math.isfinite(each))
        where = f"iteration {runner.iter + 1}: the loss is {losses[process]}"
        if len(losses) > 1:
            where += f" in process {process}"
        if self.action == "skip" and not any(damaged):
            self.skipped += 1
            runner.message_hub.update_scalar("train/skipped_updates", self.skipped)
            runner.logger.warning(f"{where}; the update is skipped, {self.skipped} so far")
            return
        cause = all_gather_object(first_non_finite(runner.model, self._batch))[process]
        raise UserError(
            f"{where}; {cause}. The checkpoints saved before are kept. A lower learning rate or "
            "optim_wrapper.clip_grad may help"
        )


def first_non_finite(model: nn.Module, batch: Any) -> str:
    """Says which parameter, or else which module's output on a batch, is the first not finite.

    Args:
        model: A model, or its wrapper for several processes, all of which must ask then.
        batch: What the model's data preprocessor takes.
    """
    inner: Any = model.module if is_model_wrapper(model) else model
    for name, parameter in inner.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {_plain(name)} is not finite"
    found: list[str] = []
    handles = []
    for name, module in inner.named_modules():

        def check(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
            if not found and not all(map(_is_finite, _tensors(output))):
                found.append(f"{_plain(name) or 'model'} ({type(module).__name__})")

        handles.append(module.register_forward_hook(check))
    try:
        with torch.no_grad():
            data = inner.data_preprocessor(batch, True)
            model(**data, mode="loss") if isinstance(data, Mapping) else model(*data, mode="loss")
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "every module's output is finite in a second pass of the batch"
    return f"the first module whose output is not finite is {found[0]}"


def _plain(name: str) -> str:
    """A module's name without those that FullyShardedDataParallel puts in front of its parts."""
    return ".".join(part for part in name.split(".") if part != _SHARDED)


def _damaged(model: nn.Module) -> bool:
    parameters = any(not torch.isfinite(each).all() for each in model.parameters())
    return parameters or any(torch.isnan(each).any().item() for each in model.buffers())


class _Losses:
    """The losses of all processes, which tell each other while they compute gradients."""

    def __init__(self, loss: Tensor) -> None:
        self._finite = torch.isfinite(loss.detach()).all().to(torch.float32).reshape(1)
        self._exchange: Any = None
        if get_world_size() > 1:
            self._finite = self._finite.to(get_comm_device())
            smallest = distributed.ReduceOp.MIN
            self._exchange = distributed.all_reduce(self._finite, smallest, async_op=True)

    def are_finite(self) -> bool:
        """Waits for the exchange."""
        if self._exchange is not None:
            self._exchange.wait()
        return bool(self._finite.item())


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
