"""A check that a checkpoint and a model belong together."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from rednet.checkpoint.matching import check_finite, load_matching_weights
from rednet.engine.bare_weights_hook import without_wrapper
from rednet.errors import UserError
from rednet.registry import HOOKS


@HOOKS.register_module()
class WholeCheckpointHook(Hook):
    """Refuses a checkpoint of another model, of which mmengine would load the part that fits.

    ``tools/test.py`` and ``tools/train.py`` add it, the latter with ``partial=True`` unless it
    resumes. It runs after the other hooks have changed the checkpoint, so that weights averaged by
    ``EMAHook`` are compared as they will be used. One line says what was loaded.

    Args:
        partial: Whether a checkpoint that fits in part is accepted with a warning that says what
            was loaded. At least one weight must fit, and none may be NaN or infinite.

    Raises:
        UserError: If the checkpoint is refused.

    Examples:
        >>> custom_hooks = [dict(type='WholeCheckpointHook')]
    """

    priority = "LOWEST"

    def __init__(self, partial: bool = False) -> None:
        self.partial = partial

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compares the weights with the model's."""
        weights = without_wrapper(checkpoint.get("state_dict", checkpoint))
        try:
            check_finite(weights)
        except UserError as error:
            raise UserError(f"the checkpoint cannot be used: {error}") from error
        match = load_matching_weights(_unwrapped(runner.model), weights)
        if match.whole:
            runner.logger.info(f"the checkpoint fits the model: {match}")
            return
        if not self.partial:
            advice = "load_from without --resume" if runner._resume else "--partial"
            raise UserError(
                f"the checkpoint does not fit the model of the config: {match}; {advice} uses what "
                "fits"
            )
        if not match.taken:
            raise UserError(f"nothing of the checkpoint fits the model of the config: {match}")
        runner.logger.warning(f"the checkpoint fits the model in part: {match}")


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without wrappers for several processes or several views of an image."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner
