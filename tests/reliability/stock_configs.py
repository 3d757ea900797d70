"""Checks the configs of RedNet and of OpenMMLab's libraries, which all work: none may be refused.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/stock_configs.py [EVERY]

The libraries' configs are those of this installation; EVERY=10 takes each tenth of them.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.config import utils as config_utils

import rednet  # noqa: F401
from rednet.cli import unread_keys
from rednet.cli.config import check_fields, check_numbers
from rednet.cli.model import scope_of
from rednet.cli.nms_keys import check_nms_keys
from rednet.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("mmdet", "mmpretrain", "mmseg")


def config_files(every: int = 1, of_ours: int = 1) -> dict[str, list[Path]]:
    """The files by whose they are, or each so-manieth of the libraries' and of RedNet's."""
    found = {"rednet": sorted((ROOT / "configs").rglob("*.py"))[::of_ours]}
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        package = Path(spec.origin).parent
        files = [*package.glob(".mim/configs/**/*.py"), *package.glob("configs/**/*.py")]
        found[name] = sorted(each for each in files if each.name != "__init__.py")[::every]
    return found


def read(file: Path) -> Config | None:
    """Reads a config; some of the libraries' own cannot be read, or need other packages."""
    try:
        return Config.fromfile(file, import_custom_modules=False)
    except Exception:
        return None


def refusals(config: Config) -> Iterator[str]:
    """What each check of a config's keys has against it."""
    scope = scope_of(config)
    for check in (
        check_fields,
        check_numbers,
        lambda config: unread_keys.check_unread_keys(config, scope),
        lambda config: check_nms_keys(config, scope),
    ):
        try:
            check(config)
        except UserError as error:
            yield str(error)


def main() -> None:
    """Prints each refusal, and for each library how many configs were read and refused."""
    # What takes most of the time: the libraries' metafiles and sources, each time again.
    config_utils.load = functools.cache(config_utils.load)
    sources = functools.cache(lambda packages: list(_sources(packages)))
    _sources = unread_keys._sources
    unread_keys._sources = lambda packages: sources(frozenset(packages))
    for name, files in config_files(*map(int, sys.argv[1:])).items():
        configs = [(file, config) for file in files if (config := read(file)) is not None]
        refused = [(file, line) for file, config in configs for line in refusals(config)]
        for file, line in refused:
            print(f"{file}: {line}")
        print(f"{name}: {len(files)} files, {len(configs)} read, {len(refused)} refused")


if __name__ == "__main__":
    main()
