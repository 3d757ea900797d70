"""Draw the training curves of several runs in one picture, with seeds as a band.

    python tools/analysis_tools/compare_runs.py involution=work_dirs/inv_0,work_dirs/inv_1 \
        convolution=work_dirs/conv_0,work_dirs/conv_1 --keys loss 'accuracy.*'

Reads the scalars that mmengine's LocalVisBackend wrote. A line is the mean of the runs of a name,
the band around it reaches from the lowest run to the highest. Prints the last values as a table.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.errors import UserError, first_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Values by position in the training, for each scalar.
Scalars = dict[str, dict[int, float]]
NOT_DRAWN = ("data_time", "epoch", "iter", "lr", "memory", "step", "time")
DEFAULT_KEYS = ("^loss$", ".*/.*", "^mIoU$")
COLORS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#2e4057")
_NAMES_SHOWN = 12
_COLUMNS = 3


@dataclass(frozen=True)
class Group:
    """The runs of one name.

    Attributes:
        name: The name.
        runs: The scalars of each run.
    """

    name: str
    runs: tuple[Scalars, ...]

    def curve(self, key: str) -> tuple[list[int], list[list[float]]]:
        """The positions that all runs have, and there the values of each run."""
        each = [run[key] for run in self.runs if key in run]
        if len(each) != len(self.runs):
            return [], []
        positions = sorted(set.intersection(*(set(values) for values in each)))
        return positions, [[values[position] for position in positions] for values in each]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the picture and prints the table."""
    args = _parse(arguments)
    groups = [_read_group(text) for text in args.runs]
    keys = _chosen(groups, args.keys)
    check_output(args.out, "--out")
    _draw(groups, keys, args.out)
    print(_table(groups, keys))
    print(args.out)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]DIR[,DIR...]",
        help="work directories; those of one name differ in their seed",
    )
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="REGEX",
        default=list(DEFAULT_KEYS),
        help="draw the scalars in whose names one of these is found (loss and validation metrics)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/runs.png"), help="the picture (%(default)s)"
    )
    return parser.parse_args(arguments)


# ---- reading


def _read_group(text: str) -> Group:
    name, _, folders = text.rpartition("=")
    paths = [Path(folder) for folder in folders.split(",")]
    return Group(name or paths[0].name, tuple(map(read_scalars, paths)))


def read_scalars(work_dir: Path) -> Scalars:
    """Reads all scalars of a run; where it was resumed, the later value of a position counts.

    Args:
        work_dir: The work directory of a run.

    Raises:
        UserError: If it holds no scalars, or a file of them cannot be read.
    """
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    if not files:
        raise UserError(f"{work_dir} holds no scalars of a run (<timestamp>/vis_data/scalars.json)")
    scalars: Scalars = {}
    for file in files:
        for record in _records(file):
            for key, value in record.items():
                if key not in NOT_DRAWN and isinstance(value, (int, float)):
                    scalars.setdefault(key, {})[int(record["step"])] = float(value)
    return scalars


def _records(file: Path) -> Iterator[Mapping[str, float]]:
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # a run that was killed while it wrote
                return
            raise UserError(f"{file}: line {number} is not JSON: {error}") from error
        if "step" in record:
            yield record


def _chosen(groups: Sequence[Group], patterns: Iterable[str]) -> list[str]:
    """The scalars that a pattern matches and that all runs of some group have."""
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(f"--keys must be regular expressions: {error}") from error
    known = list(dict.fromkeys(key for group in groups for each in group.runs for key in each))
    keys = [
        key
        for pattern in compiled
        for key in known
        if pattern.search(key) and any(group.curve(key)[0] for group in groups)
    ]
    if not keys:
        raise UserError(
            f"--keys match none of the runs' scalars: {first_names(known, _NAMES_SHOWN)}"
        )
    return list(dict.fromkeys(keys))


# ---- showing


def _draw(groups: Sequence[Group], keys: Sequence[str], path: Path) -> None:
    from matplotlib.figure import Figure

    columns = min(len(keys), _COLUMNS)
    rows = ceil(len(keys) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows + 0.4), layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, key in zip(cells, keys, strict=False):
        for index, group in enumerate(groups):
            _plot(axes, group, key, COLORS[index % len(COLORS)])
        axes.set_title(key, fontsize=10, loc="left", fontweight="bold")
        axes.set_xlabel("step of the validation" if "/" in key else "iteration", fontsize=8)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in cells[len(keys) :]:
        axes.set_axis_off()
    lines, labels = cells[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(groups), frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _plot(axes: Axes, group: Group, key: str, color: str) -> None:
    positions, values = group.curve(key)
    by_position = list(zip(*values, strict=True))
    mean = [statistics.fmean(each) for each in by_position]
    count = len(group.runs)
    label = f"{group.name} ({count} runs)" if count > 1 else group.name
    axes.plot(positions, mean, color=color, label=label, marker="." if len(mean) < 30 else "")
    if count > 1:
        lowest, highest = map(min, by_position), map(max, by_position)
        axes.fill_between(
            positions, list(lowest), list(highest), color=color, alpha=0.2, linewidth=0
        )


def _table(groups: Sequence[Group], keys: Sequence[str]) -> str:
    """The last values: mean and standard deviation over the runs of each name."""
    lines = ["| run | runs | " + " | ".join(keys) + " |", "|---" * (len(keys) + 2) + "|"]
    for group in groups:
        cells = [_last(group, key) for key in keys]
        lines.append(f"| {group.name} | {len(group.runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _last(group: Group, key: str) -> str:
    positions, values = group.curve(key)
    if not positions:
        return ""
    last = [each[-1] for each in values]
    mean = f"{statistics.fmean(last):.4g}"
    return mean if len(last) == 1 else f"{mean} ± {statistics.stdev(last):.2g}"


if __name__ == "__main__":
    sys.exit(run(main))
