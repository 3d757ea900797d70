"""Checks of the files that a command reads and writes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rednet.checkpoint.reading import can_name_types, read_state_dict
from rednet.errors import UserError


def check_file(path: str, what: str) -> None:
    """Checks that a local file exists; a remote one (``https://...``) is left to mmengine.

    Raises:
        UserError: If it does not, or is named by a ``file://`` address, which mmengine cannot read.
    """
    if path.startswith("file://"):
        raise UserError(f"{what} {path} must be a path: leave out file://")
    if "://" not in path and not Path(path).expanduser().is_file():
        raise UserError(f"{what} {path} is not a file")


def check_checkpoint(path: str, what: str) -> None:
    """Checks that a local file is a checkpoint, by reading it. Remote files are left to mmengine.

    If this torch cannot read mmengine's checkpoints with ``weights_only``, only checks that the
    file exists.

    Raises:
        UserError: If it is not a checkpoint.
    """
    check_file(path, what)
    if "://" in path or not can_name_types():
        return
    try:
        read_state_dict(Path(path).expanduser())
    except UserError as error:
        raise UserError(f"{what} {error}") from error


def check_output(
    path: str | Path, what: str, *, folder: bool = False, sources: Iterable[str | None] = ()
) -> None:
    """Checks that a file can be written, without creating it or its folder.

    Args:
        path: The file.
        what: The argument that named it.
        folder: Whether the path is to be a folder.
        sources: Files that are read and so must not be replaced.

    Raises:
        UserError: If the path exists as something else, is one of the sources, lies below a file or
            cannot be written.
    """
    place = Path(path)
    existing = next(each for each in (place, *place.parents) if os.path.exists(each))
    if existing == place and not folder and existing.is_dir():
        raise UserError(f"{what} {path} must be a file, but is a directory")
    if (existing != place or folder) and not existing.is_dir():
        raise UserError(f"{what} {path} cannot be created: {existing} is a file, not a directory")
    if any(source and os.path.realpath(source) == os.path.realpath(place) for source in sources):
        raise UserError(f"{what} {path} would replace a file that is read: give another name")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{what} {path} cannot be written: no permission to write {existing}")
