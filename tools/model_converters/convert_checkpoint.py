"""Turn a published checkpoint of RedNet (mmcls 0.x, mmdet 2.x, mmseg 0.x) into one of this package.

Every entry is reported as taken, renamed or refused. Nothing is written if one is refused or, with
--config, missing, unless --partial is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rednet.checkpoint.published import convert
from rednet.checkpoint.reading import read_state_dict
from rednet.checkpoint.writing import write_checkpoint
from rednet.cli.arguments import add_config_options
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.model import build_with_stem
from rednet.cli.paths import check_output
from rednet.errors import UserError
from rednet.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts as the arguments say."""
    args = _parse(arguments)
    check_output(args.output, "the output", sources=(args.checkpoint, args.config))
    build_model = None
    if args.config:
        build_model = partial(build_with_stem, read_config(args.config, args.cfg_options)[0])
    result = convert(read_state_dict(args.checkpoint), build_model)
    for line in result.lines():
        print(line)
    if (result.refused or result.missing) and not args.partial:
        raise UserError(
            f"{len(result.refused)} entries of {args.checkpoint} are refused and "
            f"{len(result.missing)} are missing: {args.output} is not written; --partial writes "
            "what was taken and renamed"
        )
    if not result.state_dict:
        raise UserError(f"no entry of {args.checkpoint} can be used: {args.output} is not written")
    origin = dict(converted_from=Path(args.checkpoint).name, rednet_version=__version__)
    write_checkpoint(args.output, dict(meta=origin, state_dict=result.state_dict))
    print(f"written: {args.output}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument("checkpoint", help="the published file")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--config", help="compare names and shapes with the model of this config")
    add_config_options(parser)
    parser.add_argument(
        "--partial", action="store_true", help="write also if entries are refused or missing"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
