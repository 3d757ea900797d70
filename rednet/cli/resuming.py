"""Finding the checkpoint from which a training continues."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from rednet.checkpoint.reading import can_name_types, read_meta
from rednet.checkpoint.writing import INTERRUPTED, LAST_CHECKPOINT
from rednet.cli.paths import check_checkpoint
from rednet.errors import UserError

_NUMBERED = re.compile(r"(?:epoch|iter)_(\d+)\.pth")


def newest_checkpoint(work_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Finds the newest complete checkpoint of a work directory by reading the files.

    ``last_checkpoint`` is used only for a checkpoint whose name has no number: a run that was
    killed may have left it empty or behind, and a moved directory makes its path wrong.

    Args:
        work_dir: The work directory. It need not exist.

    Returns:
        The checkpoint, or None if there is none, and a line for each file that was passed over.

    Raises:
        UserError: If there are checkpoints and none is complete.
    """
    passed_over = []
    for path in _candidates(Path(work_dir)):
        try:
            check_checkpoint(str(path), "the checkpoint")
            _check_end(path)
        except UserError as error:
            passed_over.append(f"--resume passes over a file: {error}")
        else:
            return path, passed_over
    if passed_over:
        raise UserError(f"no checkpoint of {work_dir} is complete; {'; '.join(passed_over)}")
    return None, []


def keep_seed(config: Config, checkpoint: str | Path) -> None:
    """Puts the seed of a checkpoint's training into the config that continues it.

    mmengine restores it too, but only after the samplers were built with another.

    Raises:
        UserError: If the checkpoint was not written by a training.
    """
    if "://" in str(checkpoint) or not can_name_types():
        return
    try:
        seed = read_meta(checkpoint).get("seed")
    except UserError as error:
        raise UserError(
            f"--resume: {error}; load_from={checkpoint} starts a training from its weights"
        ) from error
    randomness = dict(config.get("randomness") or {})
    if seed is not None and randomness.get("seed") is None:
        config.randomness = dict(randomness, seed=seed)


def check_strategy(config: Config) -> list[str]:
    """Says where mmengine's strategy for several processes cannot resume a training.

    Args:
        config: The config, with ``resume`` as it was asked for.

    Returns:
        A line for the log, if there is something to say.

    Raises:
        UserError: If the training is to be resumed.
    """
    strategy = config.get("strategy")
    kind = strategy.get("type") if isinstance(strategy, Mapping) else None
    name = kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]
    if name != "FSDPStrategy":
        return []
    problem = (
        "mmengine's FSDPStrategy cannot read the optimizer's state back; load_from starts from the "
        "weights of a checkpoint written with strategy.state_dict_cfg=full"
    )
    if config.get("resume"):
        raise UserError(f"--resume: {problem}")
    return [f"this training cannot be resumed: {problem}"]


def _check_end(path: Path) -> None:
    """Checks that a file is whole where this torch cannot read it with ``weights_only``.

    Raises:
        UserError: If it does not end as the archives that PyTorch writes.
    """
    if not can_name_types() and not zipfile.is_zipfile(path):
        raise UserError(f"the checkpoint {path} is not a complete PyTorch archive")


def _candidates(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first."""
    if not folder.is_dir():
        return []
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    numbers = {name: _NUMBERED.fullmatch(name) for name in files}
    numbered = {name: int(match[1]) for name, match in numbers.items() if match}
    names = sorted(numbered, key=lambda name: numbered[name], reverse=True)
    if INTERRUPTED in files:
        names.insert(0, INTERRUPTED)
    last = _last_name(files.get(LAST_CHECKPOINT))
    if last in files and last not in names:
        names.insert(0, last)
    return [files[name] for name in names]


def _last_name(file: Path | None) -> str:
    """The name in ``last_checkpoint``, without its directory, which may have moved."""
    content = file.read_bytes().decode(errors="replace") if file else ""
    return content.strip().replace("\\", "/").rpartition("/")[2]
