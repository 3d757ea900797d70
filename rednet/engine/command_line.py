"""What the command lines in tools/ share."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from rednet.engine.config_options import LOADERS
from rednet.engine.safe_checkpoint import can_name_types, read_state_dict, require_weights_only
from rednet.errors import UserError

USER_ERROR = 2

DEFAULT_SIZE = (224, 224)
DEFAULT_SIZES = {"mmdet": (800, 1280)}


def run(
    main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None
) -> int:
    """Runs a command line; an error of the user's becomes one line on stderr.

    Every other exception passes through with its traceback.

    Args:
        main: The command line; it takes the arguments.
        arguments: Its arguments, those of the process by default.

    Returns:
        The exit status: 0, or 2 after an error of the user's.
    """
    try:
        main(arguments)
    except UserError as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return USER_ERROR
    if dist.is_available() and dist.is_initialized():
        _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """Ends the threads of the process group.

    One that lets go of a tensor while the interpreter is shutting down would abort the process.
    They live as long as anything refers to the group, and a runner, whose parts refer to each
    other, does until it is collected.
    """
    gc.collect()
    dist.destroy_process_group()


def _message(error: UserError) -> str:
    """The message proper; out of a data loader's worker, the worker's traceback precedes it."""
    return str(error).rpartition(f"{type(error).__qualname__}: ")[2].strip()


class OptionsAction(DictAction):
    """mmengine's ``DictAction``, with a :class:`UserError` for what it cannot read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Adds the options to those given before.

        Raises:
            UserError: If one is not ``key=value`` or its brackets do not close.
        """
        for value in values or ():
            if not value.partition("=")[0].strip() or "=" not in value:
                raise UserError(f"{option_string} takes key=value, got {value!r}")
            try:
                super().__call__(parser, namespace, [value], option_string)
            except AssertionError as error:  # mmengine's way to say so
                raise UserError(f"{option_string} {value}: its brackets do not close") from error


def positive(text: str) -> int:
    """Reads a number of an argument that must be at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def config_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments that all tools around a config have.

    Args:
        description: What the tool does; all but its first paragraph follows the arguments.
    """
    summary, _, details = (description or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument("config", help="config file, of mmpretrain's or mmdet's form")
    add_config_options(parser)
    return parser


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=OptionsAction,
        metavar="KEY=VALUE",
        help="change fields of the config: a.b=1 list='[1,2]' pair='(1,2)' text=x",
    )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the tools that build a runner."""
    parser.add_argument("--work-dir", help="folder for logs and results (work_dirs/<config>)")
    parser.add_argument("--amp", action="store_true", help="mixed precision; needs a GPU to train")
    parser.add_argument(
        "--no-pin-memory", action="store_true", help="no pinned memory in data loaders"
    )
    parser.add_argument(
        "--no-persistent-workers", action="store_true", help="new loader workers in every epoch"
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed run were started",
    )
    # torch.distributed.launch passes --local-rank, before torch 2 --local_rank
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def set_up_run(config: Config, arguments: argparse.Namespace) -> None:
    """Applies the arguments of :func:`add_runner_arguments` to a config."""
    os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    require_weights_only()
    config.launcher = arguments.launcher
    if arguments.work_dir is not None:
        config.work_dir = arguments.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(arguments.config).stem)
    check_output(config.work_dir, "the work directory (--work-dir)", folder=True)
    for loader in filter(None, map(config.get, LOADERS)):
        _set_loader_defaults(loader, config.get("default_scope"), arguments)


def _set_loader_defaults(loader: Any, scope: str | None, arguments: argparse.Namespace) -> None:
    """What mmpretrain's and mmdet's own tools set, as far as this machine can use it."""
    if scope == "mmpretrain":
        loader.setdefault("collate_fn", dict(type="default_collate"))
    workers = loader.get("num_workers", 0) > 0
    loader.setdefault("persistent_workers", workers)
    loader.setdefault("pin_memory", torch.cuda.is_available())
    loader.persistent_workers &= workers and not arguments.no_persistent_workers
    loader.pin_memory &= not arguments.no_pin_memory


def check_file(path: str, what: str) -> None:
    """Checks that a local file exists; a remote one (``https://...``) is left to mmengine.

    Raises:
        UserError: If it does not.
    """
    if "://" not in path and not Path(path).expanduser().is_file():
        raise UserError(f"{what} {path} is not a file")


def check_checkpoint(path: str, what: str) -> None:
    """Checks that a local file is a checkpoint, by reading it; a remote one is left to mmengine.

    With a torch that cannot read all of mmengine's with ``weights_only``, that it exists.

    Raises:
        UserError: If it is none.
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
    """Checks that a file can be written at a path, and makes the folder that it will lie in.

    Args:
        path: The file.
        what: The argument that named it.
        folder: Whether it is to be a folder; that one is checked and not made.
        sources: Files that are read, and so must not be replaced.

    Raises:
        UserError: If the path is already something else or one of the sources, lies below a file,
            or there is no permission to write it.
    """
    place = Path(path)
    existing = next(each for each in (place, *place.parents) if os.path.exists(each))
    if existing == place and not folder and existing.is_dir():
        raise UserError(f"{what} {path} must be a file, and is a folder")
    if (existing != place or folder) and not existing.is_dir():
        raise UserError(f"{what} {path} cannot be made: {existing} is a file, and no folder")
    if any(source and os.path.realpath(source) == os.path.realpath(place) for source in sources):
        raise UserError(f"{what} {path} would replace a file that is read: give another name")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{what} {path} cannot be written: no permission to write {existing}")
    if not folder:
        place.parent.mkdir(parents=True, exist_ok=True)


def image_size(shape: Sequence[int] | None, scope: str | None = None) -> tuple[int, int]:
    """The height and width of the images of a tool.

    Args:
        shape: What ``--shape`` was given: height and width, or one number for both.
        scope: The library whose usual size it is without; by default 224 x 224.

    Raises:
        UserError: If the shape is neither.
    """
    if shape is None:
        return DEFAULT_SIZES.get(scope or "", DEFAULT_SIZE)
    if len(shape) > 2 or min(shape) < 1:
        raise UserError(f"--shape takes a height and a width of at least 1, got {list(shape)}")
    return shape[0], shape[-1]


def build_runner(config: Config, notes: Sequence[str]) -> Runner:
    """Builds the runner and logs the notes, so that they stand in the log file too."""
    runner = RUNNERS.build(config) if "runner_type" in config else Runner.from_cfg(config)
    for note in notes:
        runner.logger.warning(note)
    return runner
