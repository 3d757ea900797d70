"""Checkpoints survive a kill and a full disk, and nothing outside the work directory goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.runner.checkpoint import save_checkpoint
from torch import nn

from rednet.checkpoint.reading import read_state_dict
from rednet.engine import SafeCheckpointHook
from rednet.errors import UserError
from rednet.files import write_file


class SmallRunner:
    """What the hook asks of a runner, with mmengine's function that writes the file."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = str(work_dir)
        self.epoch = self.iter = 0
        self.message_hub = MessageHub(f"safe_checkpoint_{work_dir}")
        self.logger = MMLogger.get_instance("safe_checkpoint")
        self.model = nn.Linear(2, 2)

    def save_checkpoint(
        self, out_dir: str, filename: str, *_: Any, backend_args: Any = None, **__: Any
    ) -> None:
        content = dict(state_dict=self.model.state_dict())
        save_checkpoint(content, os.path.join(out_dir, filename), backend_args=backend_args)


def hook_of(runner: SmallRunner, **arguments: Any) -> SafeCheckpointHook:
    hook = SafeCheckpointHook(**arguments)
    hook.before_train(runner)
    return hook


def epochs(hook: SafeCheckpointHook, runner: SmallRunner, numbers: range) -> None:
    for runner.epoch in numbers:
        hook._save_checkpoint(runner)


def test_the_last_files_are_kept_and_named_relatively(tmp_path: Path) -> None:
    runner = SmallRunner(tmp_path)
    epochs(hook_of(runner, max_keep_ckpts=2), runner, range(4))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch_3.pth", "epoch_4.pth", "last_checkpoint"]
    assert (tmp_path / "last_checkpoint").read_text() == "epoch_4.pth"


def test_an_outdated_checkpoint_that_is_a_directory_goes(tmp_path: Path) -> None:
    runner = SmallRunner(tmp_path)
    hook = hook_of(runner, max_keep_ckpts=1)
    epochs(hook, runner, range(1))
    (tmp_path / "epoch_1.pth").unlink()
    write_file(tmp_path / "epoch_1.pth" / "part.pt", b"weights of one rank")
    epochs(hook, runner, range(1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_2.pth", "last_checkpoint"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["write", "rename"])
def test_a_kill_during_a_save_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    runner = SmallRunner(tmp_path)
    hook = hook_of(runner, max_keep_ckpts=1)
    epochs(hook, runner, range(1))

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "fsync" if place == "write" else "replace", kill)
    with pytest.raises(Killed):
        epochs(hook, runner, range(1, 2))
    read_state_dict(tmp_path / "epoch_1.pth")
    assert not (tmp_path / "epoch_2.pth").exists()
    assert (tmp_path / "last_checkpoint").read_text() == "epoch_1.pth"


def test_parts_that_a_killed_run_left_are_removed_when_the_next_begins(tmp_path: Path) -> None:
    (tmp_path / ".epoch_1.pth.x7f_3q.rednet-part").write_bytes(b"part")
    (tmp_path / ".image.iso.part").write_bytes(b"the user's")
    hook_of(SmallRunner(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".image.iso.part"]


def test_a_best_checkpoint_of_another_run_stays(tmp_path: Path) -> None:
    other = tmp_path / "a" / "best_acc_epoch_1.pth"
    write_file(other, b"other")
    runner = SmallRunner(tmp_path / "b")
    runner.message_hub.update_info("best_ckpt", str(other))
    hook = hook_of(runner, save_best="acc")
    for runner.epoch, accuracy in ((1, 0.5), (2, 0.6)):
        hook._save_best_checkpoint(runner, dict(acc=accuracy))
    assert other.read_bytes() == b"other"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["best_acc_epoch_2.pth"]


def test_the_best_before_stays_until_the_new_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = SmallRunner(tmp_path)
    hook = hook_of(runner, save_best="acc")
    runner.epoch = 1
    hook._save_best_checkpoint(runner, dict(acc=0.5))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    runner.epoch = 2
    with pytest.raises(UserError, match="best_acc_epoch_2.pth"):
        hook._save_best_checkpoint(runner, dict(acc=0.6))
    assert [path.name for path in tmp_path.iterdir()] == ["best_acc_epoch_1.pth"]
