"""Compare the results of two runs of the benchmarks, so that a regression shows.

    python tools/benchmarks/compare_results.py before.json after.json
    python tools/benchmarks/compare_results.py before/ after/ --relative-to nn.Conv2d

Prints the times of both and their ratio, as a Markdown table. Of two folders, the files of the same
name are compared. The exit code is 1 if anything has become slower by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import in_words, table_head, table_row

from rednet.cli.command import run
from rednet.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the comparison of every pair of files."""
    args = _parse(arguments)
    slower = []
    for before, after in _pairs(args.before, args.after):
        old, new = _read(before), _read(after)
        print(f"## {after.stem}\n\nbefore: {in_words(old['machine'])}")
        print(f"after: {in_words(new['machine'])}\n")
        slower += _compare(old, new, args)
    if slower:
        print(f"\nslower by more than {args.tolerance:.0%}: {', '.join(slower)}")
        sys.exit(1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="results, or a folder of them")
    parser.add_argument("after", type=Path, help="later ones")
    parser.add_argument(
        "--relative-to",
        metavar="CONTENDER",
        help="compare ratios to this contender's time in the same case, such as nn.Conv2d or "
        "torchvision.models:resnet50: for runs on machines of different speed",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        help="growth of a time that counts as slower (%(default)s)",
    )
    return parser.parse_args(arguments)


def _pairs(before: Path, after: Path) -> list[tuple[Path, Path]]:
    if not (before.is_dir() and after.is_dir()):
        return [(before, after)]
    pairs = [(path, after / path.name) for path in sorted(before.glob("*.json"))]
    pairs = [pair for pair in pairs if pair[1].is_file()]
    if not pairs:
        raise UserError(f"{before} and {after} have no .json file of the same name")
    return pairs


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as results of a benchmark: {error}") from error
    if not isinstance(content, dict) or not {"machine", "records"} <= content.keys():
        raise UserError(f"{path} has no machine and records, so no benchmark's --out wrote it")
    return content


def _compare(old: dict[str, Any], new: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Prints the table of what both have, and returns what has become slower."""
    unit = "/ " + args.relative_to if args.relative_to else "ms"
    earlier, later = (_times(each["records"], args.relative_to) for each in (old, new))
    both = [key for key in later if key in earlier]
    if not both:
        raise UserError(f"the results have no case in common, compared in {unit}")
    print(table_head("case", "contender", f"before, {unit}", f"after, {unit}", "after / before"))
    slower = []
    for key in both:
        ratio = later[key] / earlier[key]
        print(table_row(*key, f"{earlier[key]:.3g}", f"{later[key]:.3g}", f"{ratio:.2f}"))
        if ratio > 1 + args.tolerance:
            slower.append(" ".join(filter(None, key)))
    print()
    return slower


def _times(
    records: Sequence[dict[str, Any]], relative_to: str | None
) -> dict[tuple[str, str], float]:
    """The times by case and contender, or their ratios; the models are contenders of one case."""
    if records and "model" in records[0]:
        records = [dict(case={}, results={each["model"]: each for each in records})]
    found = {}
    for record in records:
        case = " ".join(f"{name}={value}" for name, value in record["case"].items())
        times = {name: each["milliseconds"] for name, each in record["results"].items()}
        unit = times.get(relative_to) if relative_to else 1.0
        for contender, time in times.items():
            if unit is not None and contender != relative_to:
                found[case, contender] = time / unit
    return found


if __name__ == "__main__":
    run(main)
