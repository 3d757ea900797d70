"""Misspelt keys of a config that nothing refuses and nothing reads.

They go to a class that accepts any argument, or stand in the dicts without a type from which a
model's heads read their settings.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from mmengine.config import Config

from rednet.cli.config_keys import constructor_of, fields, parameters_of
from rednet.cli.failures import short
from rednet.cli.suggestions import did_you_mean
from rednet.errors import UserError

_SIMILAR = 0.8
# train_cfg, test_cfg, semi_test_cfg and the like.
_SETTINGS = re.compile(r"(?:^|_)(?:train|test)_cfg$")
# cfg.name, cfg['name'], cfg.get('name' and 'name' in cfg, of any variable whose name ends so.
_READ = re.compile(r"""cfg(?:\.get\(\s*["']|\.|\[["'])(\w+)|["'](\w+)["'] in \w*cfg\b""")
# What a dict without a type has itself.
_METHODS = frozenset(dir(dict))
_OPENMMLAB = ("mmengine", "mmcv", "mmdet", "mmpretrain", "mmseg")


def check_unread_keys(config: Config, scope: str | None, parts: Collection[str] = ()) -> None:
    """Refuses a key that resembles a known one and that occurs in no source file.

    Known are the arguments of a class that accepts any, and of its bases; and for the settings in a
    model's ``train_cfg`` and ``test_cfg``, what the model's classes read from such dicts. A key
    passes if it resembles none of them, or if it occurs anywhere in the sources of OpenMMLab's
    packages, of those that the config uses or of what these import, for then something may read it.

    Args:
        config: The config, after its modules have been imported.
        scope: The library whose types have no prefix.
        parts: The fields to check; by default all.

    Raises:
        UserError: With the key, its value and the key that it resembles.
    """
    nodes = [
        (key, node)
        for key, node in fields(dict(config.items()), "")
        if isinstance(node, Mapping) and (not parts or key.partition(".")[0] in parts)
    ]
    classes = {
        key: kind
        for key, node in nodes
        if "type" in node and isinstance(kind := constructor_of(key, node, scope), type)
    }
    suspects = [*_arguments(nodes, classes), *_settings(config, classes)]
    if not suspects:
        return
    sources = list(_sources(_packages(config, classes.values())))
    for name, line in suspects:
        if not any(_mentions(source, name) for source in sources):
            raise UserError(line)


def _arguments(
    nodes: Iterable[tuple[str, Mapping[str, Any]]], classes: Mapping[str, type]
) -> Iterator[tuple[str, str]]:
    """Keys that resemble an argument of a class that accepts any, each with its line."""
    for key, node in nodes:
        kind = classes.get(key)
        if kind is None or not _accepts_any(kind):
            continue
        known = parameters_of(kind)
        for name in _texts(node.keys() - known.keys() - {"type"}):
            advice = did_you_mean(name, known, _SIMILAR)
            if advice:
                line = f"{key}.{name}={short(node[name])}: {kind.__name__} has no argument {name!r}"
                yield name, line + advice


def _texts(keys: Iterable[Any]) -> list[str]:
    return sorted(key for key in keys if isinstance(key, str))


def _accepts_any(kind: type) -> bool:
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # a class in C may not tell
        return False
    return any(each.kind is each.VAR_KEYWORD for each in parameters)


def _settings(config: Config, classes: Mapping[str, type]) -> Iterator[tuple[str, str]]:
    """Keys in a model's settings that resemble one that is read there, each with its line."""
    settings = [
        each
        for key, node in fields(config.get("model"), "model")
        if _SETTINGS.search(key.rpartition(".")[2])
        for each in _without_type(key, node)
    ]
    if not settings:
        return
    kinds = {
        base for key, kind in classes.items() if key.startswith("model") for base in kind.mro()
    }
    source = "\n".join(_source(name) for name in {kind.__module__ for kind in kinds})
    known = {name for found in _READ.findall(source) for name in found if name} - _METHODS
    for key, node in settings:
        for name in _texts(node.keys() - known):
            advice = did_you_mean(name, known, _SIMILAR)
            if advice and not _mentions(source, name):
                yield name, f"{key}.{name}={short(node[name])}: nothing reads {name!r}{advice}"


def _without_type(key: str, node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A dict and those below it, down to the ones that have a type."""
    if isinstance(node, Mapping) and "type" not in node:
        yield key, node
        for name, value in node.items():
            yield from _without_type(f"{key}.{name}", value)
    elif isinstance(node, (list, tuple)):  # one for each stage
        for index, value in enumerate(node):
            yield from _without_type(f"{key}.{index}", value)


# ---- sources


def _packages(config: Config, classes: Iterable[type]) -> set[str]:
    """The packages of the config's classes and modules, and those that they import."""
    names = (config.get("custom_imports") or {}).get("imports") or []
    modules = {names} if isinstance(names, str) else set(names)
    modules |= {base.__module__ for kind in classes for base in kind.mro()}
    for module in list(modules):
        for value in vars(sys.modules.get(module, object)).values():
            home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "")
            modules |= {home} if isinstance(home, str) else set()
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


def _sources(packages: AbstractSet[str]) -> Iterator[str]:
    """All of OpenMMLab's packages but their configs, and what has been imported of others."""
    for package in filter(sys.modules.get, _OPENMMLAB):
        folder = Path(str(sys.modules[package].__file__)).parent
        files = (each for each in folder.rglob("*.py") if ".mim" not in each.parts)
        yield from (file.read_text(errors="replace") for file in files)
    for name in list(sys.modules):
        if name.partition(".")[0] in packages - {*_OPENMMLAB}:
            yield _source(name)


def _source(module: str) -> str:
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return file.read_text(errors="replace") if file.suffix == ".py" and file.is_file() else ""


def _mentions(source: str, name: str) -> bool:
    if name not in source:  # much faster, and true of nearly every source
        return False
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source) is not None
