"""Exceptions of other libraries in one line: the config's key, the value and the reason."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any
from urllib.error import URLError

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS, OPTIMIZERS, Registry
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import distributed as dist

from rednet.cli.config_keys import (
    LOADERS,
    Place,
    config_of,
    constructor_of,
    fields,
    find_place,
    frames_of,
    parameters_of,
)
from rednet.cli.suggestions import did_you_mean
from rednet.errors import UserError

_UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)")
# Their message says what is wrong without their name.
_PLAIN = (AssertionError, OSError, TypeError, ValueError)
_FETCH = os.path.join("torch", "utils", "data", "_utils", "fetch.py")
_OPTIMIZERS = os.path.join("torch", "optim", "")
_WORKER = re.compile(r"in DataLoader worker process|DataLoader worker .*(?:killed|exited)")
# What builds a dict reads a part of it from a registry, and complains of None if it is not there.
_PARTS: dict[str, tuple[str, Registry, str]] = {
    "optim_wrapper": ("optimizer", OPTIMIZERS, "None is not a callable object"),
    **dict.fromkeys(LOADERS, ("collate_fn", FUNCTIONS, "first argument must be callable")),
}
_VALUE_LENGTH = 120
_REASON_LENGTH = 400


class SetupError(UserError):
    """An exception of another library while a command was set up; its cause is that exception."""


class LostProcessError(SetupError):
    """Another process of a distributed run ended, or cannot be reached."""


class _FirstIteration(Hook):
    """Notices that a loop has begun."""

    priority = "VERY_HIGH"
    begun = False

    def _before_iter(self, *args: Any, **kwargs: Any) -> None:
        self.begun = True


def run_loops(runner: Runner, run: Callable[[], Any]) -> tuple[Any, bool]:
    """Runs a runner's loops. Until the first iteration they are still set up.

    Args:
        runner: The runner.
        run: Its method ``train`` or ``test``.

    Returns:
        What the method returns, and whether there was an iteration.

    Raises:
        UserError: For what is raised before the first iteration, and for errors of the disk, the
            data, the memory and the other processes.
    """
    watch = _FirstIteration()
    runner.register_hook(watch)
    try:
        return run(), watch.begun
    except SetupError:
        raise
    except Exception as error:
        line = outside_problem(error)
        if line is None and not watch.begun:
            line = describe(error, runner.cfg)
        if line is None or isinstance(error, UserError) and line == str(error):
            raise
        raise _kind(error)(line) from error


@contextmanager
def setting_up() -> Iterator[None]:
    """Turns every exception into a :class:`UserError` of one line.

    For what a command does before its work begins: reading the config, checking it and building. An
    exception there comes from what the user gave, or is a bug whose traceback is in the file that
    :func:`rednet.cli.command.run` writes.

    Raises:
        UserError: If anything is raised.
    """
    try:
        yield
    except SetupError:
        raise
    except Exception as error:
        line = outside_problem(error) or describe(error)
        if line == str(error) and isinstance(error, UserError):
            raise
        raise _kind(error)(line) from error


def _kind(error: BaseException) -> type[SetupError]:
    return LostProcessError if _lost_a_process(error) else SetupError


def _lost_a_process(error: BaseException) -> bool:
    return isinstance(error, getattr(dist, "DistError", ())) or "gloo/transport" in str(error)


def outside_problem(error: BaseException) -> str | None:
    """One line about an error of the data, disk, memory or other processes, if it is one."""
    if isinstance(error, UserError):
        return None
    frames = frames_of(error)
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            f"not enough memory; a smaller train_dataloader.batch_size needs less: {_first(text)}"
        )
    if any(frame.f_code.co_filename.endswith(_FETCH) for frame in frames) or _WORKER.search(text):
        return _data_problem(frames, error)
    if _lost_a_process(error):
        return f"another process of this run ended, or cannot be reached: {_first(text)}"
    if "more than 1 value per channel when training" in text:
        return (
            "batch norms cannot train on a batch of one image, which the last of an epoch is: "
            f"train_dataloader.drop_last=True leaves it out, or change batch_size ({_first(text)})"
        )
    if "without overflow" in text and any(
        _OPTIMIZERS in each.f_code.co_filename for each in frames
    ):
        lr = next((each.f_locals["lr"] for each in frames if "lr" in each.f_locals), "too large")
        return f"optim_wrapper.optimizer: its step overflows; lr is {lr} ({_first(text)})"
    if isinstance(error, URLError):
        address = next(
            (each.f_locals["url"] for each in frames if "url" in each.f_locals), "a file"
        )
        return f"{address} cannot be downloaded: {error.reason}"
    return reason_of(error) if isinstance(error, OSError) else None


def _data_problem(frames: list[FrameType], error: BaseException) -> str:
    """The message about a sample that could not be made, with its loader and image."""
    loops = [frame.f_locals.get("self") for frame in frames]
    kinds = [type(loop).__name__.lower() for loop in loops if isinstance(loop, BaseLoop)]
    loader = next(
        (name for name in LOADERS if name.partition("_")[0] in "".join(kinds[-1:])), "data"
    )
    images = [
        value["img_path"]
        for frame in frames
        for value in frame.f_locals.values()
        if isinstance(value, dict) and isinstance(value.get("img_path"), str)
    ]
    reason = reason_of(error)
    if _WORKER.search(str(error)):  # ends with the worker's exception
        reason = str(error).strip().splitlines()[-1]
    return ": ".join([loader, *images[-1:], reason])


def _first(text: str) -> str:
    return _one_line(text.partition("\n")[0], _REASON_LENGTH)


def describe(error: BaseException, config: Config | None = None) -> str:
    """One line about an exception, with the key of the config that was being built.

    Args:
        error: The exception.
        config: The config; by default the one among the local variables of the functions.
    """
    frames = frames_of(error)
    launcher = _launcher_problem(frames, error)
    if launcher:
        return launcher
    config = config or config_of(frames)
    place = None if config is None else find_place(frames, config)
    if isinstance(error, UserError):
        return f"{place.key}: {error}" if place else str(error)
    if place is None:
        return (config and _without_place(error, config)) or reason_of(error)
    line = _unknown_type(error, place) or _unknown_part(error, place)
    return line or _wrong_argument(error, place, config) or _wrong_value(error, place)


def _without_place(error: BaseException, config: Config) -> str | None:
    """The message if the only field of a name, or the only one with a text, caused the error."""
    if isinstance(error, KeyError):
        text = error.args[0] if error.args else None
        keys = [key for key, value in fields(dict(config.items()), "") if value == text]
        if isinstance(text, str) and len(keys) == 1:
            return f"{keys[0]}={short(text)}: {reason_of(error)}"
    return _wrong_argument(error, Place("", {}), config)


def reason_of(error: BaseException) -> str:
    """The message of an exception in one line, with its class where the message needs it."""
    text = _one_line(str(error), _REASON_LENGTH)
    if not text and isinstance(error, AssertionError) and error.__traceback__:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"`{linecache.getline(last.filename, last.lineno or 0).strip()}` does not hold"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if text and isinstance(error, _PLAIN) and not isinstance(error, UnicodeError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unknown_type(error: BaseException, place: Place) -> str | None:
    """The message if the type that a dict names is not registered, or if it names none."""
    if not isinstance(error, KeyError) or not isinstance(place.node, Mapping):
        return None
    name = place.node.get("type")
    if name is None and (error.args == ("type",) or "must contain the key" in str(error)):
        return f"{place.key}={short(place.node)} needs a type"
    if place.registry is None or "is not in the" not in str(error):
        return None
    return _not_registered(place.key, name, place.registry)


def _unknown_part(error: BaseException, place: Place) -> str | None:
    """The message if mmengine looked for a type in vain and went on with None."""
    part, registry, complaint = _PARTS.get(place.key, ("", None, ""))
    node = place.node.get(part) if isinstance(place.node, Mapping) else None
    if registry is None or not isinstance(node, Mapping) or complaint not in str(error):
        return None
    return _not_registered(f"{place.key}.{part}", node.get("type"), registry)


def _not_registered(key: str, name: Any, registry: Registry) -> str:
    advice = did_you_mean(str(name).rpartition(".")[2], _registered(registry))
    return f"{key}.type={name!r} is not a registered {registry.name}{advice}"


def _registered(registry: Any) -> set[str]:
    """The names of a registry, its ancestors and its children."""
    names: set[str] = set()
    ancestor = registry
    while ancestor is not None:
        names.update(ancestor.module_dict)
        ancestor = ancestor.parent
    for child in registry.children.values():
        names.update(child.module_dict)
    return names


def _wrong_argument(error: BaseException, place: Place, config: Any) -> str | None:
    """The message if the constructor does not have a field of a dict, or needs another."""
    if not isinstance(error, TypeError) or not isinstance(place.node, Mapping):
        return None
    called = str(error).partition("(")[0].removesuffix(".__init__")
    kind = place.node.get("type") or place.constructor or place.key or called
    name = getattr(kind, "__name__", kind)
    unexpected, missing = _UNEXPECTED.search(str(error)), _MISSING.search(str(error))
    if unexpected is not None:
        return _unknown_argument(unexpected[1], name, place, config)
    return f"{place.key}: {name} needs {missing[1]}" if missing and place.key else None


def _unknown_argument(field: str, constructor: str, place: Place, config: Any) -> str | None:
    """The message about a field of the dict, or of another one that has been handed on."""
    below = [(place.key, place.node), *fields(place.node, place.key)]
    elsewhere = _with_field(field, fields(dict(config.items()), ""))
    holders = _with_field(field, below) or (elsewhere if len(elsewhere) == 1 else [])
    if not holders:
        return None
    key, node = holders[0]
    arguments: Mapping[str, Any] = {}
    if key == place.key:
        arguments = parameters_of(place.constructor or constructor_of(key, node, None))
    advice = did_you_mean(field, arguments) or (
        f"; {key}._delete_=True replaces an inherited dict as a whole"
    )
    return f"{key}.{field}={short(node[field])}: {constructor} has no argument {field!r}{advice}"


def _with_field(
    field: str, nodes: Iterable[tuple[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    return [(key, node) for key, node in nodes if isinstance(node, Mapping) and field in node]


def _wrong_value(error: BaseException, place: Place) -> str:
    field = _suspect(place, str(error))
    if field is not None:
        return f"{place.key}.{field}={short(place.node[field])}: {reason_of(error)}"
    return f"{place.key}={short(place.node)}: {reason_of(error)}"


def _suspect(place: Place, message: str) -> str | None:
    """The field of a dict that an exception is about, as far as can be told."""
    node = place.node
    if not isinstance(node, Mapping):
        return None
    misplaced = text_for_number(node, place.constructor)
    if misplaced is not None:
        return misplaced
    named = [name for name in node if re.search(rf"\b{re.escape(str(name))}\b", message)]
    named = named or [
        name for name, value in node.items() if name != "type" and _occurs(value, message)
    ]
    return named[0] if len(named) == 1 else None


def text_for_number(node: Mapping[str, Any], constructor: Any) -> str | None:
    """The first field of a dict that has a text where its class expects a number."""
    parameters = parameters_of(constructor)
    texts = [name for name, value in node.items() if isinstance(value, str) and name in parameters]
    return next((name for name in texts if _is_number(parameters[name])), None)


def _is_number(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is declared as a number, or as numbers, and not also as a text."""
    declared = str(getattr(parameter.annotation, "__name__", parameter.annotation))
    if re.search(r"\bstr\b", declared) or isinstance(parameter.default, bool):
        return False
    default = parameter.default
    first = default[0] if isinstance(default, (tuple, list)) and default else default
    return declared in ("int", "float") or isinstance(first, (int, float))


def _occurs(value: Any, message: str) -> bool:
    text = str(value)
    return (
        isinstance(value, (str, int, float))
        and len(text) > 1
        and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", message) is not None
    )


def _launcher_problem(frames: list[FrameType], error: BaseException) -> str | None:
    """The message if the processes of a distributed run could not find each other."""
    names = {frame.f_code.co_name for frame in frames}
    if not names & {"init_dist", "init_process_group"}:
        return None
    text = error.args[0] if isinstance(error, KeyError) else reason_of(error)
    variable = re.search(r"\b[A-Z_]*(?:RANK|SIZE|ADDR|PORT|PROCID|NTASKS|NODELIST)\b", text)
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        port = os.environ.get("MASTER_PORT", "29500")
        return f"port {port} (MASTER_PORT) is in use: set PORT to a free one"
    if variable and variable[0] not in os.environ:
        return (
            f"--launcher: the environment variable {variable[0]} is not set; start the processes "
            "with tools/dist_train.sh, torchrun or srun"
        )
    return f"--launcher: the processes cannot be connected: {text}"


def short(value: Any) -> str:
    """A value as a config writes it, cut to a part of a line."""
    if isinstance(value, Mapping):
        text = f"dict({', '.join(f'{name}={short(each)}' for name, each in value.items())})"
    else:
        text = repr(value)
    return _one_line(text, _VALUE_LENGTH)


def _one_line(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
