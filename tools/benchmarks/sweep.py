"""Train a config with every combination of some options and seeds, one JSON line for each run.

    python tools/benchmarks/sweep.py configs/demo/rednet26_scenes.py --results runs.jsonl --test \
        --grid optim_wrapper.optimizer.lr=1e-3,3e-3 --seeds 0 1 2
    python tools/benchmarks/sweep.py --results runs.jsonl

Runs whose line is in the file are skipped, so that a command that was stopped goes on where it was.
Both commands print the table of the file: for each name and combination, the mean and deviation of
the last validation's metrics (and with ``--test``, of the test data's) over the seeds. The work
directories keep the curves, for tools/analysis_tools/compare_runs.py.

Every run is a process of its own, so its CPU time is that of the training, its validations and its
test, without the import of the libraries.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import runpy
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmpretrain  # noqa: F401  so that it is imported once, not in each run
import torch
from timing import table_head, table_row

from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.errors import UserError

TOOLS = Path(__file__).resolve().parents[1]
SEED = "randomness.seed"
# What makes a run: one line of the file for each.
KEY = ("name", "config", "options", "seed")
Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing, and shows everything."""
    args = _parse(arguments)
    check_output(args.results, "--results")
    records = _read(args.results)
    if args.config:
        done = [_key(record) for record in records]
        for wanted in _combinations(args):
            if _key(wanted) not in done:
                records.append(_train(wanted, args))
                _append(args.results, records[-1])
    print(_table(records))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="config to train; only the table without it")
    parser.add_argument("--results", type=Path, required=True, help="the file, of JSON lines")
    parser.add_argument("--name", help="name in the table; by default the config's file name")
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[],
        metavar="KEY=VALUE[,VALUE...]",
        help="options of the config; each combination of their values is trained",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds to train each with (0)"
    )
    parser.add_argument("--test", action="store_true", help="run tools/test.py on the last weights")
    parser.add_argument(
        "--work-dirs",
        type=Path,
        default=Path("work_dirs/sweep"),
        metavar="DIR",
        help="folder of the runs' work directories (%(default)s)",
    )
    return parser.parse_args(arguments)


def _combinations(args: argparse.Namespace) -> Iterator[Record]:
    axes = []
    for text in args.grid:
        option, equals, values = text.partition("=")
        if not option or not equals or not values:
            raise UserError(f"--grid expects KEY=VALUE[,VALUE...], got {text!r}")
        axes.append([(option, value) for value in values.split(",")])
    name = args.name or Path(args.config).stem
    for chosen in itertools.product(*axes):
        for seed in args.seeds:
            yield dict(name=name, config=args.config, options=dict(chosen), seed=seed)


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[field] for field in KEY)


# ---- the file


def _read(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            _key(record)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: line {number} is not a run of this tool") from error
        records.append(record)
    return records


def _append(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


# ---- a run


def _train(wanted: Record, args: argparse.Namespace) -> Record:
    """Trains in a child process; returns the line of the run."""
    parts = [wanted["name"], *wanted["options"].values(), str(wanted["seed"])]
    work_dir = args.work_dirs / "_".join(parts).replace(" ", "-").replace("/", "-")
    work_dir.mkdir(parents=True, exist_ok=True)
    before = _children_seconds()
    child = multiprocessing.get_context("fork").Process(
        target=_run_tools, args=(wanted, work_dir, args.test)
    )
    child.start()
    child.join()
    if child.exitcode:
        raise UserError(f"the run failed with status {child.exitcode}: see {work_dir / 'out.log'}")
    return dict(
        wanted,
        metrics=_last_metrics(work_dir, args.test),
        cpu_seconds=round(_children_seconds() - before, 1),
        torch=torch.__version__,
    )


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run_tools(wanted: Record, work_dir: Path, test: bool) -> None:
    """tools/train.py, and tools/test.py on its last checkpoint, with their output in a file."""
    log = os.open(work_dir / "out.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):  # stdout and stderr, of libraries in C++ too
        os.dup2(log, descriptor)
    options = {**wanted["options"], SEED: wanted["seed"]}
    common = ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
    _run_tool("train.py", wanted["config"], "--work-dir", str(work_dir), *common)
    if test:
        # The file holds a name or a path, by mmengine's version and backend.
        checkpoint = str(work_dir / Path((work_dir / "last_checkpoint").read_text()).name)
        tested = str(work_dir / "test")
        _run_tool("test.py", wanted["config"], checkpoint, "--work-dir", tested, *common)


def _run_tool(name: str, *arguments: str) -> None:
    sys.argv = [name, *arguments]
    try:
        runpy.run_path(str(TOOLS / name), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def _last_metrics(work_dir: Path, test: bool) -> dict[str, float]:
    """The last validation's metrics, and under ``test/`` those of the test data."""
    newest = max(work_dir.glob("*/vis_data/scalars.json"))
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    metrics = _metrics(next(line for line in reversed(lines) if "loss" not in line))
    if test:
        newest = max((work_dir / "test").glob("*/*.json"))
        found = _metrics(json.loads(newest.read_text()))
        metrics.update((f"test/{key}", value) for key, value in found.items())
    return metrics


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in record.items()
        if key not in ("step", "time", "data_time") and isinstance(value, (int, float))
    }


# ---- what is shown


def _table(records: Sequence[Record]) -> str:
    metrics = list(dict.fromkeys(key for record in records for key in record["metrics"]))
    lines = [table_head("name", "options", "runs", *metrics, "CPU s")]
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        options = " ".join(
            f"{key.rpartition('.')[2]}={value}" for key, value in record["options"].items()
        )
        groups.setdefault((record["name"], options), []).append(record)
    for (name, options), runs in groups.items():
        cells = [_cell([each["metrics"].get(key) for each in runs]) for key in metrics]
        seconds = _cell([each["cpu_seconds"] for each in runs])
        lines.append(table_row(name, options, str(len(runs)), *cells, seconds))
    return "\n".join(lines)


def _cell(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of what was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):.4g}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2g}"


if __name__ == "__main__":
    sys.exit(run(main))
