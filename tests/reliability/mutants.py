"""Puts one small fault after the other into the package and counts those that the tests notice.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/mutants.py work_dirs/mutants

Everything is imported once. Each mutant is tried in a forked child, which imports the package with
one module changed and runs, quickest first, the tests that execute the changed statement, until one
fails. A second call with the same folder tries those again that were not noticed.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.machinery
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import hypothesis
import pytest
from mutations import mutations

ROOT = Path(__file__).resolve().parents[2]
AROUND_CHECKPOINTS = [
    "rednet/files.py",
    "rednet/engine/safe_checkpoint_hook.py",
    "rednet/engine/whole_checkpoint_hook.py",
    "rednet/engine/backbone_checkpoint_hook.py",
    "rednet/engine/bare_weights_hook.py",
]
# Only a GPU executes these, or their source is compiled from the file and a mutant never seen.
LEFT_OUT = ("rednet/ops/cuda/", "rednet/ops/triton/")
TESTS = [
    *("tests/ops", "tests/layers", "tests/checkpoint", "tests/engine", "tests/deploy"),
    *("tests/test_files.py", "tests/test_flops.py", "tests/cli/test_pretrained.py"),
    "tests/models/test_following_norm.py",
]
OURS = ("rednet", "tests", "tools")
UNTRACED = ("test_cuda", "test_triton", "test_onnx", "test_distributed", "test_in_other_tools")
MOST_SECONDS = 10.0


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: The module, relative to the repository.
        number: Which of the module's mutations it is.
        line: Where it is.
        lines: The lines of its statement.
        text: The code before and after.
    """

    file: str
    number: int
    line: int
    lines: range
    text: str

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return f"{self.file}:{self.line} #{self.number} {self.text}"


def find_mutants() -> list[Mutant]:
    """All mutants of the operators, the layers and the code around checkpoints."""
    rooms = ("rednet/ops", "rednet/layers", "rednet/checkpoint")
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    names = [path.relative_to(ROOT).as_posix() for path in files] + AROUND_CHECKPOINTS
    found = []
    for name in names:
        if name.startswith(LEFT_OUT):
            continue
        for number, (site, new) in enumerate(mutations(ast.parse((ROOT / name).read_text()))):
            text = f"{_short(site.node)} -> {_short(new)}"
            line: int = getattr(site.node, "lineno", 0)
            found.append(Mutant(name, number, line, site.lines, text))
    return found


def _short(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:60]


def mutate(mutant: Mutant) -> None:
    """Makes this process import the mutant instead of its module."""
    path = str(ROOT / mutant.file)
    tree = ast.parse(Path(path).read_text())
    site, new = mutations(tree)[mutant.number]
    site.put(new)
    code = compile(tree, path, "exec")
    loader = importlib.machinery.SourceFileLoader
    get_code = loader.get_code

    def get_mutant(self: Any, name: str) -> CodeType | None:
        return code if self.path == path else get_code(self, name)

    loader.get_code = get_mutant  # type: ignore[method-assign]


class Tracing:
    """A pytest plugin that writes down which lines each test executes, and how long it takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[str, set[int]]] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Traces a test with its fixtures."""
        begun = time.process_time()
        with _tracing(self.lines.setdefault(item.nodeid, {})):
            yield
        self.seconds[item.nodeid] = time.process_time() - begun

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps in mind which tests cannot tell anything."""
        if not report.passed:
            self.failed.add(report.nodeid)

    def write(self, path: Path) -> None:
        """Writes the tests that passed, with their times and lines."""
        passed = {
            test: dict(
                seconds=seconds,
                lines={file: sorted(lines) for file, lines in self.lines[test].items()},
            )
            for test, seconds in self.seconds.items()
            if test not in self.failed
        }
        path.write_text(json.dumps(passed))


@contextmanager
def _tracing(lines: dict[str, set[int]]) -> Iterator[None]:
    package = str(ROOT / "rednet") + os.sep

    def trace(frame: FrameType, event: str, _: Any) -> Callable | None:
        file = frame.f_code.co_filename
        if not file.startswith(package):
            return None
        lines.setdefault(os.path.relpath(file, ROOT), set()).add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


class Chosen:
    """A pytest plugin that runs the given tests in the given order."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sorts and selects."""
        chosen = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(chosen, key=lambda item: self.order[item.nodeid])


def tests_of(mutant: Mutant, executed: dict[str, Any]) -> list[str]:
    """The tests that execute a mutant's statement, else its module: by file, quickest first."""
    reached = {test: each["lines"].get(mutant.file, ()) for test, each in executed.items()}
    lines = set(mutant.lines)
    tests = [test for test, found in reached.items() if lines.intersection(found)]
    tests = sorted(
        tests or [test for test, found in reached.items() if found],
        key=lambda test: executed[test]["seconds"],
    )
    first = {test.partition("::")[0]: place for place, test in reversed(list(enumerate(tests)))}
    total, chosen = 0.0, []
    for test in tests:
        total += executed[test]["seconds"]
        if chosen and total > MOST_SECONDS:
            break
        chosen.append(test)
    return sorted(chosen, key=lambda test: first[test.partition("::")[0]])  # is stable


def in_child(work: Callable[[], int]) -> int:
    """Starts a child that works in silence, and returns its process id."""
    number = os.fork()
    if number:
        return number
    code = 100
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.path.insert(0, str(ROOT))
        hypothesis.settings.register_profile("mutants", database=None, deadline=None)
        hypothesis.settings.load_profile("mutants")
        code = work()
    finally:
        os._exit(code)


def run_tests(tests: list[str], plugin: object, *options: str) -> int:
    """Runs pytest in this process."""
    common = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore"]
    return int(pytest.main([*common, *options, *tests], plugins=[plugin]))


def try_mutant(mutant: Mutant, tests: list[str]) -> int:
    """Runs a mutant's tests; for the child."""
    limit = int(3 * MOST_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    mutate(mutant)
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    return run_tests(files, Chosen(tests), "-x")


def outcome(status: int) -> str:
    """What a child's status means for its mutant."""
    if os.WIFSIGNALED(status):
        return "killed: too long" if os.WTERMSIG(status) != 11 else "killed: crashed"
    code = os.WEXITSTATUS(status)
    return {0: "survived", 1: "killed", 5: "survived: no test"}.get(code, "killed: not importable")


def trace_tests(path: Path) -> int:
    """Runs all tests and writes what they execute; for the child."""
    plugin = Tracing()
    run_tests(TESTS, plugin, *(f"--ignore-glob=*{name}*" for name in UNTRACED))
    plugin.write(path)
    return 0


def list_modules(path: Path) -> int:
    """Writes what the tests import; for the child."""
    run_tests(TESTS, object(), "--collect-only")
    modules = [name for name in sys.modules if name.split(".")[0] not in OURS]
    path.write_text("\n".join(modules))
    return 0


def import_everything(names: list[str]) -> None:
    """Imports what the tests import, so that no child does, but nothing that can be a mutant."""
    for name in names:
        with suppress(Exception):  # some names are not modules' real ones
            importlib.import_module(name)
    imported = [name for name in sys.modules if name.split(".")[0] in OURS]
    if imported:
        raise RuntimeError(f"children would not see mutants: {imported[0]} is imported")


def try_all(mutants: list[Mutant], executed: dict[str, Any], results: Path, jobs: int) -> None:
    """Tries the mutants and appends each outcome to a file."""
    running: dict[int, Mutant] = {}
    waiting = mutants[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            tests = tests_of(mutant, executed)
            running[in_child(lambda: try_mutant(mutant, tests))] = mutant  # noqa: B023
        number, status, _ = os.wait4(-1, 0)
        done = running.pop(number)
        with open(results, "a") as file:
            file.write(json.dumps([done.name, outcome(status)]) + "\n")


def report(results: dict[str, str]) -> None:
    """Prints the outcomes by room, and the mutants that survived."""
    counts = Counter((name.split("/")[1], what.split(":")[0]) for name, what in results.items())
    for room in sorted({room for room, _ in counts}):
        killed, tried = counts[room, "killed"], sum(counts[room, w] for r, w in counts if r == room)
        print(f"{room}: {killed} of {tried} killed, {killed / tried:.0%}")
    killed = sum(what.startswith("killed") for what in results.values())
    print(f"all: {killed} of {len(results)} killed, {killed / len(results):.1%}")
    for name, what in sorted(results.items()):
        if not what.startswith("killed"):
            print(f"{what}: {name}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{(used.ru_utime + used.ru_stime) / 60:.1f} minutes of one core")


def main() -> None:
    """Tries a random sample of the mutants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("folder", type=Path, help="for the results")
    parser.add_argument("--mutants", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lines = arguments.folder / "lines.json"
    os.chdir(ROOT)
    modules = arguments.folder / "modules.txt"
    os.waitpid(in_child(lambda: list_modules(modules)), 0)
    import_everything(modules.read_text().splitlines())
    if not lines.is_file():  # after the imports, so that tests which they disturb are left out
        os.waitpid(in_child(lambda: trace_tests(lines)), 0)
    file = arguments.folder / "results.jsonl"
    mutants = find_mutants()
    sample = random.Random(arguments.seed).sample(mutants, arguments.mutants)
    print(f"{len(mutants)} mutants, {len(sample)} are tried", flush=True)
    gc.freeze()  # the children share what is imported
    before = _read(file)
    left = [each for each in sample if not before.get(each.name, "").startswith("killed")]
    left.sort(key=lambda each: each.name in before)  # new ones first
    try_all(left, json.loads(lines.read_text()), file, arguments.jobs)
    report(_read(file))


def _read(file: Path) -> dict[str, str]:
    return dict(map(json.loads, file.read_text().splitlines())) if file.is_file() else {}


if __name__ == "__main__":
    main()
