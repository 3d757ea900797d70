"""Writing checkpoints, and the names of the files around them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rednet.files import write_file

LAST_CHECKPOINT = "last_checkpoint"
# Written where a training is told to stop, and outdated by the next regular checkpoint.
INTERRUPTED = "interrupted.pth"


def write_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Writes a checkpoint as :func:`rednet.files.write_file` does.

    Args:
        path: The file.
        checkpoint: What ``torch.save`` saves.

    Raises:
        UserError: If it cannot be written.
    """
    content = io.BytesIO()
    torch.save(checkpoint, content)
    write_file(path, content.getvalue())
