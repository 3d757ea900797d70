"""The documentation agrees with the code and with itself."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rednet.layers.base import registered_layers
from tests.forked_programs import run_forked

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Files that GitHub shows: README and its like, and the pages of the site.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "configs").rglob("*.md")),
    *sorted((ROOT / "tests").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)


def run_blocks() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "run_blocks", Path(__file__).parent / "run_blocks.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_blocks"] = module  # where its dataclass is looked up
    spec.loader.exec_module(module)
    return module


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose(path)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        place = (path.parent / target).resolve() if target else path
        assert place.exists(), link
        if anchor and place.suffix == ".md":
            assert anchor in slugs(place), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_pages_name_exist(path: Path) -> None:
    names = re.findall(
        r"(?<![\w./-])((?:tools|configs|tests|docs|rednet)/(?![^\s`]*\.\.)[\w./-]+\.(?:py|sh|md|yml|cu|h))\b",
        path.read_text(),
    )
    missing = {name for name in names if not (ROOT / name).exists()}
    assert not missing


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_pages_begin_with_what_they_are_for(path: Path) -> None:
    title, _, rest = path.read_text().partition("\n\n")
    assert title.startswith("# ")
    assert not rest.startswith(("#", "```", "|", "!", "-"))


def test_marked_blocks_are_understood() -> None:
    module = run_blocks()
    pages = list(module.pages())
    assert DOCS / "your_own_data.md" in pages
    for page in pages:
        assert module.blocks(page.read_text())


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    module = run_blocks()
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n\n<!-- run: file: a.txt -->\n```text\nkept\n```\n\n"
        "<!-- run: no_such_module -->\n```bash\nexit 3\n```\n\n"
        "<!-- run -->\n```bash\ngrep -q kept a.txt\ncd /\n```\n\n"
        "<!-- run -->\n```python\nimport os\nassert os.getcwd() == '/'\nassert 1 == 2\n```\n"
    )
    (tmp_path / "run").mkdir()
    assert module.run_page(page, tmp_path / "run") == 21


@pytest.mark.parametrize(
    "text",
    [
        "<!-- run -->\n\n```bash\ntrue\n```\n",
        "<!-- run -->\n```toml\na = 1\n```\n",
        "<!-- run: if possible -->\n```bash\ntrue\n```\n",
    ],
)
def test_a_mark_that_would_be_ignored_is_an_error(text: str) -> None:
    module = run_blocks()
    with pytest.raises(module.BlockError):
        module.blocks(text)


@pytest.mark.parametrize("name", registered_layers())
def test_each_layer_has_a_page_with_its_keywords(name: str) -> None:
    page = (DOCS / "layers" / f"{name.lower()}.md").read_text()
    assert f"::: rednet.layers.{name}\n" in page
    own = {
        each.name: each.default
        for each in inspect.signature(registered_layers()[name]).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    }
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", page, re.M)
    assert {
        key: eval(compile(ast.parse(value, mode="eval"), "", "eval")) for key, value in rows
    } == own


@pytest.mark.parametrize("name", ["rooms", "involution"])
def test_the_pictures_are_those_that_the_scripts_draw(name: str, tmp_path: Path) -> None:
    """Their words and arrows; coordinates depend on the version of matplotlib."""
    pytest.importorskip("matplotlib")
    script = DOCS / "scripts" / {"rooms": "draw_rooms.py", "involution": "draw_operator.py"}[name]
    drawn = tmp_path / "drawn.svg"
    subprocess.run([sys.executable, script, drawn], check=True)
    pattern = re.compile(r"<!-- (.+?) -->|<g id=\"(\w+?)_\d+\"")
    committed = (DOCS / "pictures" / f"{name}.svg").read_text()
    same = pattern.findall(drawn.read_text()) == pattern.findall(committed)
    assert same, f"draw docs/pictures/{name}.svg again: python docs/scripts/{script.name}"


IMPORT = """
import os, random, signal, socket, sys, threading, warnings
import numpy, torch, mmengine, mmcv.cnn, mmcv.transforms, torch.utils.checkpoint

def state():
    return dict(
        environment=dict(os.environ),
        folder=os.getcwd(),
        path=list(sys.path),
        filters=list(warnings.filters),
        random=random.getstate(),
        numpy=numpy.random.get_state()[1].tolist(),
        torch=torch.get_rng_state().tolist(),
        dtype=torch.get_default_dtype(),
        threads=(torch.get_num_threads(), threading.active_count()),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        gradients=torch.is_grad_enabled(),
        signals=[signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        libraries={line.split()[-1] for line in open("/proc/self/maps") if "/rednet/" in line},
    )

def refuse(*_, **__):
    raise AssertionError("a connection was opened")

socket.socket.connect = refuse
before, finders = state(), list(sys.meta_path)
import rednet
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, changed
new = [type(each).__module__ for each in sys.meta_path if each not in finders]
assert all(name.startswith("rednet.") for name in new), new
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_importing_leaves_the_process_as_it_was() -> None:
    """What docs/design.md says that importing does not do."""
    done = run_forked(IMPORT)
    assert done.returncode == 0, done.stderr


COMMANDS = [
    path
    for folder in ("", "analysis_tools", "model_converters", "dataset_converters")
    for path in sorted((ROOT / "tools" / folder).glob("*.py"))
]


class Captured(Exception):
    """Carries the parser of a command out of it."""


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_the_page_of_the_commands_names_every_option(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Captured(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", capture)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    with pytest.raises(Captured) as caught:
        importlib.import_module(name).main([])
    page = (DOCS / "tools.md").read_text()
    assert path.name in page
    for action in caught.value.args[0]._actions:
        options = [option for option in action.option_strings if option.startswith("--")]
        if options and options != ["--help"] and action.help != argparse.SUPPRESS:
            assert any(re.search(rf"{option}\b", page) for option in options), options


def test_the_site_has_every_page() -> None:
    """``docs/build.sh`` needs packages of its own; this much of it does not."""

    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for each in children for leaf in leaves(each)]

    nav = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda page: page.stem)
def test_the_reference_lists_the_public_names_of_its_room(page: Path) -> None:
    public = getattr(importlib.import_module(f"rednet.{page.stem}"), "__all__", [])
    listed = re.findall(rf"^::: rednet\.{page.stem}\.(\w+)$", page.read_text(), re.M)
    assert set(public) - set(listed) == set()
