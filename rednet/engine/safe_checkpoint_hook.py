"""Checkpoints of which an interruption loses none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from rednet.checkpoint.writing import INTERRUPTED, LAST_CHECKPOINT
from rednet.errors import UserError
from rednet.files import remove_parts, write_file
from rednet.registry import HOOKS

LOCAL_BACKEND = "rednet_safe_local"


class SafeLocalBackend(LocalBackend):
    """mmengine's local files, each written aside and renamed when it is complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file, see :func:`rednet.files.write_file`."""
        write_file(filepath, obj)


register_backend(LOCAL_BACKEND, SafeLocalBackend)


class _LaterRemoval(SafeLocalBackend):
    """Collects the files that are to be removed instead of removing them."""

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(str(filepath))

    def rmtree(self, dir_path: str | Path) -> None:
        self.outdated.append(str(dir_path))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for runs that may be killed at any moment.

    A checkpoint is written aside, flushed to the disk and renamed. The files that
    ``max_keep_ckpts`` and ``save_best`` make superfluous are removed only after the new checkpoint
    is complete, and only in the directory of the checkpoints, wherever a resumed checkpoint says
    that its best was. ``last_checkpoint`` is replaced in one step and holds a name relative to the
    work directory. What a killed run has left of a file is removed when a training begins.

    The arguments are those of ``CheckpointHook``. Remote directories (``out_dir='s3://...'``) and
    other ``backend_args`` are written as mmengine writes them.

    Raises:
        UserError: If a file cannot be written, as on a full disk, or a metric of ``save_best`` is
            not among those of the validation. The earlier files are intact.

    Examples:
        >>> default_hooks = dict(
        ...     checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3))
    """

    backend_args: dict[str, Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What mmengine would hand on to Runner.save_checkpoint, which fails after an epoch then.
        for name in self.args:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}")

    def before_run(self, runner: Runner) -> None:
        """Finds the checkpoint of ``resume=True``, whose name mmengine takes from where it runs."""
        if not getattr(runner, "_resume", False) or runner._load_from is not None:
            return
        last = Path(runner.work_dir, LAST_CHECKPOINT)
        named = Path(runner.work_dir, os.fsdecode(last.read_bytes())) if last.is_file() else None
        if named is not None and named.is_file():
            runner._load_from = str(named)

    def before_train(self, runner: Runner) -> None:
        """Chooses how files are written, and removes parts that a killed run has left."""
        self._later = _LaterRemoval()
        self._local = "://" not in str(self.out_dir or runner.work_dir)
        if self._local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=LOCAL_BACKEND)
        super().before_train(runner)
        if self._local:
            self.file_backend = self._later
            if is_main_process():
                for folder in {self.out_dir, runner.work_dir}:
                    remove_parts(folder)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Leaves functions out of the schedulers' states: ``weights_only`` would refuse them.

        A scheduler that is built again has them, such as ``OneCycleLR`` its annealing function.
        """
        states = checkpoint.get("param_schedulers", [])
        for group in states.values() if isinstance(states, dict) else [states]:
            group[:] = [
                {key: value for key, value in state.items() if not callable(value)}
                for state in group
            ]

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if not self._local:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        self._keep(runner, step)
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, filename)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            name = os.path.relpath(self.last_ckpt, runner.work_dir)
            write_file(Path(runner.work_dir, LAST_CHECKPOINT), os.fsencode(name))
            Path(runner.work_dir, INTERRUPTED).unlink(missing_ok=True)
        self._remove_outdated()

    def _keep(self, runner: Runner, step: int) -> None:
        """Adds a step to those that are kept; the oldest may become outdated."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return
        if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
            oldest = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self._later.outdated.append(os.path.join(self.out_dir, oldest))
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        for name in self.save_best or ():
            if name != "auto" and metrics and name not in metrics:
                raise UserError(
                    f"default_hooks.checkpoint.save_best={name!r} is not among the metrics of the "
                    f"validation, which are {', '.join(metrics)}"
                )
        super()._save_best_checkpoint(runner, metrics)
        if self._local:
            self._remove_outdated()

    def _remove_outdated(self) -> None:
        outdated, self._later.outdated = self._later.outdated, []
        if is_main_process():
            _remove(outdated, self.out_dir, kept=self._current_files())

    def _current_files(self) -> set[str]:
        best = getattr(self, "best_ckpt_path_dict", {}).values()
        files = [self.last_ckpt, getattr(self, "best_ckpt_path", None), *best]
        return {os.path.realpath(file) for file in files if file}


def _remove(paths: Iterable[str], folder: str, kept: set[str]) -> None:
    """Removes the files, and directories such as DeepSpeed's, that lie in the folder."""
    for path in map(os.path.realpath, paths):
        if path in kept or os.path.dirname(path) != os.path.realpath(folder):
            continue
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
