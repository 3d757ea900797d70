"""Every package that is imported is declared in setup.cfg, or comes with one that is."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"rednet", "tools", *(path.stem for path in (ROOT / "tools").rglob("*.py"))}
# setup.cfg says why mmcv is not declared. CuPy is optional and has a package for each CUDA.
KNOWN = {"mmcv": "mmengine", "cupy": "cupy-cuda12x"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def declared() -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return {name_of(line) for text in lines for line in text.split("\n") if line.strip()}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


def needs(name: str) -> set[str]:
    """What a declared package requires, if it is installed, without its extras."""
    try:
        return {name_of(each) for each in requires(name) or () if "extra ==" not in each}
    except PackageNotFoundError:
        return set()


def test_imports_are_declared() -> None:
    pytest.importorskip("mmdet")
    direct = declared()
    available = direct.union(*map(needs, direct))
    distributions = packages_distributions()
    for folder in ("rednet", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for module in set(imported(path)) - OURS - sys.stdlib_module_names:
                names = [KNOWN[module]] if module in KNOWN else distributions.get(module, [module])
                found = {each.lower().replace("_", "-") for each in names}
                assert found & available, f"{path} imports {module}, which setup.cfg does not name"


def test_the_lock_file_has_the_pins_of_the_requirements() -> None:
    """`uv pip compile requirements.txt --generate-hashes --python-version 3.11` writes it."""
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    locked = set(re.findall(r"^(\S+==\S+) \\$", lock, re.M))
    entries = re.split(r"^(?=\S+==)", lock, flags=re.M)[1:]
    assert len(entries) == len(locked) and all("--hash=sha256:" in each for each in entries)
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        pin, _, marker = line.partition(";")
        if "==" in pin and '<"' not in marker.replace(" ", ""):
            assert pin.strip() in locked, f"{pin} is not in requirements/lock.txt"
