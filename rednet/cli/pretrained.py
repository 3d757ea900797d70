"""What a model takes of the checkpoints that its ``init_cfg`` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from logging import Logger
from pathlib import Path
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from rednet.checkpoint.matching import check_finite, load_matching_weights
from rednet.checkpoint.reading import read_state_dict
from rednet.engine.bare_weights_hook import without_wrapper
from rednet.errors import UserError

_TYPES = ("Pretrained", "PretrainedInit", PretrainedInit)


def load_pretrained(model: nn.Module, logger: Logger) -> None:
    """Loads the weights of each ``init_cfg=dict(type='Pretrained')`` and logs a line about it.

    mmengine loads them once more when the training begins; it takes whatever fits, without an error
    if that is nothing.

    Args:
        model: The model, perhaps in a wrapper for several processes.
        logger: Gets the lines.

    Raises:
        UserError: If nothing of a checkpoint fits, a weight is NaN or infinite, or a checkpoint
            cannot be read or downloaded.
    """
    inner: Any = model.module if is_model_wrapper(model) else model
    for name, module in inner.named_modules():
        key = ".".join(filter(None, ("model", name, "init_cfg")))
        for config in _configs(getattr(module, "init_cfg", None)):
            path = config["checkpoint"]
            try:
                weights = _weights(path, config.get("prefix"))
                check_finite(weights)
            except (UserError, OSError) as error:  # OSError: of a download
                raise UserError(f"{key}: {path} cannot be used: {error}") from error
            match = load_matching_weights(module, weights)
            line = f"{key}: {path}: {match}"
            if not match.taken:
                raise UserError(f"{line}; prefix names the part of the file that is meant")
            (logger.info if match.whole else logger.warning)(line)


def _configs(init_cfg: Any) -> Iterator[Mapping[str, Any]]:
    for each in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if isinstance(each, Mapping) and each.get("type") in _TYPES and each.get("checkpoint"):
            yield each


def _weights(path: str, prefix: str | None) -> dict[str, Tensor]:
    """The weights of a file or a download, of which mmengine would take those with the prefix."""
    if "://" in path:
        content = CheckpointLoader.load_checkpoint(path, map_location="cpu")
        weights = content.get("state_dict", content)
    else:
        weights = read_state_dict(Path(path).expanduser())
    if not prefix:
        return without_wrapper(weights)
    start = prefix.rstrip(".") + "."
    return {name[len(start) :]: each for name, each in weights.items() if name.startswith(start)}
