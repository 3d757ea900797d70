"""Run the code blocks of the documentation that are marked as runnable.

A block is marked by a comment on the line before it:

    <!-- run -->                  run it
    <!-- run: mmdet -->           run it where mmdet is installed
    <!-- run: file: shapes.py --> write it to a file of this name, for the blocks that follow

The blocks of a page run in order, as one shell script, in an empty folder with links to the
checkout's tools, configs and package. A page stops at the first block that fails.

Usage: python tests/docs/run_blocks.py [PAGE...]    (README.md and docs/ without arguments)
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINKS = ("configs", "rednet", "tools", "tests")
BLOCK = re.compile(
    r"^<!-- run(?::(?P<marks>.*?))? -->\n```(?P<language>\w+).*?\n(?P<code>.*?)^```$", re.M | re.S
)
# A marker that is not followed by a fence would be ignored in silence.
MARKER = re.compile(r"^\s*<!-- ?run\b", re.M)
DELIMITER = "END_OF_BLOCK"


class BlockError(Exception):
    """A mark that cannot be understood."""


@dataclass(frozen=True)
class Block:
    """A code block marked as runnable.

    Attributes:
        line: The line of the page where its code begins.
        language: ``bash`` or ``python``.
        code: The code.
        needs: Modules without which it is skipped.
        file: The file to write it to, instead of running it.
    """

    line: int
    language: str
    code: str
    needs: tuple[str, ...]
    file: str | None

    def script(self) -> str:
        """The shell commands that run it, or write it to its file."""
        if self.file:
            return f"cat > {shlex.quote(self.file)} <<'{DELIMITER}'\n{self.code}{DELIMITER}\n"
        if self.language == "python":
            return f"python - <<'{DELIMITER}'\n{self.code}{DELIMITER}\n"
        return self.code


def blocks(text: str) -> list[Block]:
    """The marked blocks of a page, in order.

    Raises:
        BlockError: If a mark is unknown or stands before something that is not a code block.
    """
    found = []
    for match in BLOCK.finditer(text):
        file, needs = None, []
        for mark in filter(None, (mark.strip() for mark in (match["marks"] or "").split(","))):
            if mark.startswith("file:"):
                file = mark.removeprefix("file:").strip()
            elif mark.isidentifier():
                needs.append(mark)
            else:
                raise BlockError(f"unknown mark {mark!r}")
        if file is None and match["language"] not in ("bash", "python"):
            raise BlockError(f"a block in {match['language']} cannot be run")
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(line, match["language"], match["code"], tuple(needs), file))
    if len(found) != len(MARKER.findall(text)):
        raise BlockError("a mark does not stand directly before a code block at the left margin")
    return found


def pages() -> Iterator[Path]:
    """README and the pages of docs/ that have marked blocks."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if MARKER.search(path.read_text()):
            yield path


def run_page(path: Path, folder: Path) -> int:
    """Runs the marked blocks of a page in a folder; returns the line of the one that failed, or 0.

    Blocks that need a missing module are skipped, with a line that says so.
    """
    script = ["set -euo pipefail"]
    for block in blocks(path.read_text()):
        missing = [name for name in block.needs if importlib.util.find_spec(name) is None]
        if missing:
            print(f"  line {block.line}: skipped, {', '.join(missing)} is not installed")
            continue
        script += [f"echo {block.line} > {shlex.quote(str(folder / '.line'))}", block.script()]
    place = folder / "checkout"
    place.mkdir()
    for name in LINKS:
        (place / name).symlink_to(ROOT / name)
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": search, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=place, env=environment)
    return int((folder / ".line").read_text()) if done.returncode else 0


def main(arguments: Sequence[str]) -> int:
    """Runs the pages; returns how many failed."""
    failed = []
    for path in [Path(argument).resolve() for argument in arguments] or pages():
        name, began = path.relative_to(ROOT), time.monotonic()
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            line = run_page(path, Path(folder))
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
        if line:
            failed.append(f"{name}: the block at line {line} failed")
    print("\n".join(failed) or "all blocks ran")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
