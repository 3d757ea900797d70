"""The newest complete checkpoint is found, whatever ``last_checkpoint`` holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rednet.cli.resuming import newest_checkpoint
from rednet.errors import UserError


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    for epoch in (2, 9, 10):
        torch.save(dict(state_dict={"weight": torch.ones(4)}), tmp_path / f"epoch_{epoch}.pth")
    return tmp_path


@pytest.mark.parametrize("last", [None, b"", b"\xff\x00\x80", b"/moved/epoch_2.pth", b"x" * 5000])
def test_last_checkpoint_is_no_obstacle(work_dir: Path, last: bytes | None) -> None:
    if last is not None:
        (work_dir / "last_checkpoint").write_bytes(last)
    assert newest_checkpoint(work_dir) == (work_dir / "epoch_10.pth", [])


def test_damaged_files_are_passed_over_and_named(work_dir: Path) -> None:
    newest = work_dir / "epoch_10.pth"
    newest.write_bytes(newest.read_bytes()[:-200])
    (work_dir / "epoch_9.pth").write_text("text")
    path, notes = newest_checkpoint(work_dir)
    assert path == work_dir / "epoch_2.pth"
    assert ["epoch_10.pth" in notes[0], "epoch_9.pth" in notes[1]] == [True, True]
    assert all("damaged" in note for note in notes)


def test_nothing_complete_does_not_start_from_scratch(work_dir: Path) -> None:
    for path in work_dir.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint of .* is complete; .*epoch_10.pth"):
        newest_checkpoint(work_dir)


def test_no_directory_and_other_names(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") == (None, [])
    torch.save(dict(state_dict={"weight": torch.ones(4)}), tmp_path / "own.pth")
    assert newest_checkpoint(tmp_path) == (None, [])
    (tmp_path / "last_checkpoint").write_text("/moved/own.pth")
    assert newest_checkpoint(tmp_path) == (tmp_path / "own.pth", [])
