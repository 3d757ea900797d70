"""Reading mmengine's ``init_cfg``: None, a dict or a list of dicts."""

from __future__ import annotations

from typing import Any

from mmengine.model import PretrainedInit


def as_list(init_cfg: Any) -> list:
    """The entries of an ``init_cfg``."""
    return init_cfg if isinstance(init_cfg, list) else [init_cfg]


def is_pretrained(entry: Any) -> bool:
    """Whether an entry loads a checkpoint, named or not."""
    return isinstance(entry, dict) and entry.get("type") in ("Pretrained", PretrainedInit)


def loads_checkpoint(init_cfg: Any) -> bool:
    """Whether any entry of an ``init_cfg`` loads a checkpoint."""
    return any(map(is_pretrained, as_list(init_cfg)))
