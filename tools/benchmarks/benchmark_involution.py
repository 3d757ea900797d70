r"""Time the involution operator against its peers, and measure the memory that it takes.

All contenders of a case take turns in one process; medians are reported. A case is a shape and a
pass: forward, either gradient alone, or forward and backward together. The floor is the least time
for it: each tensor read or written once at the rate of a copy, or the multiply-adds at the rate of
a matrix product, whichever takes longer; both rates are measured in the same run. "Of copy" is the
share of the copy's rate at which those bytes move. Memory is the peak of a call, its operands
included, over the size of operands and results.

    python tools/benchmarks/benchmark_involution.py --threads 2
    python tools/benchmarks/benchmark_involution.py --device cuda --batch-size 64 --dtype float16 \
        --channels-last --peer path/to/involution_cuda.py:NAME

A peer is called as ``NAME(input, weight, stride=1, padding=3, dilation=1)``, with tensors of shape
(N, C, H, W) and (N, G, K, K, Ho, Wo); NAME is ``involution`` where it is left out. A peer that
cannot compute a case is reported and left out of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from involution_cases import (
    COMPILED,
    CONVOLUTION,
    DTYPES,
    PASSES,
    Contender,
    Work,
    add_shapes,
    contenders_of,
    work_of,
)
from timing import (
    Action,
    Clock,
    Rates,
    Times,
    add_arguments,
    describe_machine,
    in_mib,
    in_words,
    load_peer,
    measure_rates,
    peak_memory,
    set_up,
    table_head,
    table_row,
    write_results,
)
from torch import Tensor

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.errors import UserError
from rednet.ops import explain_backends
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.tracing import allow_repeated_backward


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shapes(parser, batch_size=8)
    parser.add_argument(
        "--group-channels",
        type=positive,
        default=16,
        help="channels that share a kernel (%(default)s)",
    )
    parser.add_argument(
        "--passes",
        nargs="+",
        choices=PASSES,
        default=PASSES,
        help="what is timed: forward, either gradient alone, forward and backward (all four)",
    )
    parser.add_argument("--backends", nargs="+", help="of the operator; default: all that serve")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="FILE.py[:NAME]",
        help="another implementation to time, called as said above; may be repeated",
    )
    parser.add_argument("--compile", action="store_true", help=f"also time {COMPILED}")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of all tensors (%(default)s)"
    )
    add_arguments(parser, turns=25)
    return parser.parse_args(arguments)


def backends_of(args: argparse.Namespace) -> list[str]:
    """The backends to time: those asked for, or all that serve the device and the dtype.

    The operators of one that can also generate the weight, ``"...-fused"``, are another's.

    Raises:
        UserError: If one that is asked for does not serve them or does not exist.
    """
    reasons = explain_backends(args.device, DTYPES[args.dtype])
    serving = [name for name, reason in reasons.items() if reason is None]
    for name in args.backends or ():
        if name not in serving:
            reason = reasons.get(name, "there is no such backend")
            raise UserError(f"--backends {name}: {reason}; there are {', '.join(serving)}")
    return args.backends or [name for name in serving if not name.endswith("-fused")]


# ---- the table


def actions_of(
    contenders: dict[str, Contender], what: str, peers: Sequence[str]
) -> tuple[dict[str, Action], Tensor]:
    """What is timed in a pass, and the output. A peer that fails says why and is left out."""
    convolution = contenders[CONVOLUTION]
    with torch.no_grad():
        output = convolution.operator(convolution.input, convolution.weight)
    cotangent = torch.randn_like(output)
    actions = {}
    for name, contender in contenders.items():
        try:
            actions[name] = contender.action(what, cotangent)
            actions[name]()
        except Exception as error:  # a peer is code of the user's
            if name not in peers:
                raise
            actions.pop(name, None)
            print(f"{name} cannot compute {what}: {error}", file=sys.stderr)
    return actions, output


def result_of(
    times: Times, peak: int | None, work: Work, convolution: Times, rates: Rates
) -> dict[str, float | None]:
    """What is reported of a contender in a pass."""
    needed = work.operand_bytes + work.result_bytes
    least = rates.least_milliseconds(work.moved_bytes, work.multiply_adds)
    return {
        "milliseconds": times.median,
        "best_milliseconds": times.best,
        "over_convolution": times.median / convolution.median,
        "floor_milliseconds": least,
        "share_of_floor": least / times.median,
        "share_of_copy": work.moved_bytes / rates.bytes / times.median * 1e3,
        "peak_bytes": None if peak is None else peak + work.operand_bytes,
        "peak_over_tensors": None if peak is None else (peak + work.operand_bytes) / needed,
    }


def show(case: str, results: dict[str, dict[str, float | None]]) -> None:
    """Print a case as rows of a table."""
    for name, result in results.items():
        relative = result["peak_over_tensors"]
        print(
            table_row(
                case,
                name,
                f"{result['milliseconds']:.3f}",
                f"{result['over_convolution']:.2f}",
                f"{result['share_of_floor']:.0%}",
                f"{result['share_of_copy']:.0%}",
                in_mib(result["peak_bytes"]),
                "-" if relative is None else f"{relative:.2f}",
            ),
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all the cases that the command line asks for."""
    args = _parse(arguments)
    set_up(args)
    args.backends = backends_of(args)
    allow_repeated_backward()
    peers = dict(load_peer(address, "involution") for address in args.peer)
    machine, clock = describe_machine(args.device), Clock(args.device)
    rates = measure_rates(clock, args.device, accumulation_dtype(DTYPES[args.dtype]))
    print(
        f"{in_words(machine)}\n"
        f"{args.dtype}, {'channels_last' if args.channels_last else 'contiguous'}, "
        f"copy {rates.bytes / 1e9:.1f} GB/s, "
        f"matrix product {rates.multiply_adds / 1e9:.0f} G multiply-adds/s\n"
    )
    columns = ("case", "contender", "ms", "/ convolution", "of floor", "of copy", "peak MiB")
    print(table_head(*columns, "/ tensors"))
    records = []
    for shape in args.shapes:
        contenders = contenders_of(shape, args, peers)
        for what in args.passes:
            actions, output = actions_of(contenders, what, list(peers))
            times = clock.interleaved(actions, args.turns)
            results = {
                name: result_of(
                    times[name],
                    peak_memory(action, args.device),
                    work_of(what, contenders[name], output),
                    times[CONVOLUTION],
                    rates,
                )
                for name, action in actions.items()
            }
            size = "x".join(map(str, contenders[CONVOLUTION].input.shape))
            show(f"{size} K={shape.kernel_size} s={shape.stride} {what}", results)
            records.append({"case": {**shape._asdict(), "pass": what}, "results": results})
    if args.out:
        write_results(args.out, {**machine, **rates._asdict()}, args, records)


if __name__ == "__main__":
    sys.exit(run(main))
