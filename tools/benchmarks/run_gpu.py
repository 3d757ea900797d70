r"""Run what shows whether the GPU kernels are right, how fast they are, and where their time goes.

    python tools/benchmarks/run_gpu.py results/gpu
    python tools/benchmarks/run_gpu.py results/gpu --steps figures --published published.py
    python tools/benchmarks/run_gpu.py /tmp/rehearsal --rehearse

The steps, in their order: ``truth`` tests, ``figures`` times operators and layers, ``networks``
times whole models, ``profile`` looks into the kernels, ``training`` trains the demos. Each job is a
process of its own that writes FOLDER/JOB.log and, where it measures, FOLDER/JOB.json; one that
fails or takes too long stops no other. FOLDER/jobs.json says how each went.

``--rehearse`` runs the same jobs with tiny sizes on the CPU, to see that every command works.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import describe_machine, table_head, table_row, write_results

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.errors import UserError

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
CONFIGS = "configs"
LAYOUTS = {"": (), "-channels-last": ("--channels-last",)}
# Small enough for a sanitizer, and every kernel is among them.
SANITIZED = "strides or derivatives or (random_geometries and float16)"


class Job(NamedTuple):
    """A command; ``{folder}`` in it is that of the results, ``{out}`` is FOLDER/JOB."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = {}


class Sizes(NamedTuple):
    """What the jobs are run with."""

    device: str
    batch: int
    network: tuple[str, ...]
    detector: tuple[str, ...]
    detector_maps: tuple[str, ...]
    layers: tuple[str, ...]
    turns: int
    shapes: tuple[str, ...]
    backends: tuple[str, ...]
    fused: str
    side: int
    training: tuple[str, ...]
    training_options: tuple[str, ...]
    images: tuple[str, ...]
    compiled: tuple[str, ...]


GPU = Sizes(
    device="cuda",
    batch=64,
    network=("--batch-size", "128", "--amp"),
    detector=("--batch-size", "8", "--shape", "800", "1333"),
    # As many pixels as an image of 800 x 1344 has in the first two stages.
    detector_maps=("--batch-size", "2", "--shapes", "64,259,7,1", "128,130,7,1"),
    layers=("--shapes", "256,256,14,3,1"),
    turns=15,
    shapes=(),
    backends=("cuda", "triton", "shifted"),
    fused="triton-fused",
    side=224,
    training=("--amp",),
    training_options=("randomness.seed=0",),
    images=(),
    compiled=("default", "reduce-overhead"),
)
REHEARSAL = Sizes(
    device="cpu",
    batch=1,
    network=("--batch-size", "2", "--shape", "32"),
    detector=("--batch-size", "1", "--shape", "64", "64"),
    detector_maps=("--batch-size", "1", "--shapes", "16,9,7,1"),
    layers=("--shapes", "16,16,8,3,1"),
    turns=1,
    shapes=("--shapes", "16,7,7,1"),
    backends=("shifted",),
    fused="reference",
    side=32,
    training=(),
    training_options=("train_cfg.max_epochs=1", "randomness.seed=0"),
    images=("--train", "8", "--val", "4"),
    compiled=(),
)


def _python(script: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, script, *arguments)


def _benchmark(sizes: Sizes, script: str, *arguments: str) -> tuple[str, ...]:
    common = ("--device", sizes.device, "--turns", str(sizes.turns), "--out", "{out}.json")
    return _python(str(FOLDER / script), *arguments, *common)


def truth(sizes: Sizes, args: argparse.Namespace) -> Iterator[Job]:
    """The tests that need a GPU, and the small ones under compute-sanitizer."""
    pytest = (sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu")
    yield Job("tests", (*pytest, "tests/ops", "tests/layers"))
    for tool in ("memcheck", "racecheck"):
        sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "99")
        for backend in ("cuda", "triton"):
            file = f"tests/ops/test_{backend}_gpu.py"
            yield Job(f"{tool}-{backend}", (*sanitizer, *pytest, file, "-k", SANITIZED))


def figures(sizes: Sizes, args: argparse.Namespace) -> Iterator[Job]:
    """The operator, the involutions of a network in inference, and the layers."""
    batch = ("--batch-size", str(sizes.batch))
    backends = ("--backends", *sizes.backends)
    ways = ("--side", str(sizes.side), "--backends", *sizes.backends[:2], sizes.fused)
    for layout, flag in LAYOUTS.items():
        for dtype in ("float32", "float16", "bfloat16"):
            options = (*batch, "--dtype", dtype, *flag)
            others = ("--peer", args.published) if args.published and not flag else ()
            if sizes.compiled and dtype == "float32":
                others = (*others, "--compile")
            operator = (*options, *sizes.shapes, *backends, *others)
            yield Job(
                f"operator-{dtype}{layout}",
                _benchmark(sizes, "benchmark_involution.py", *operator),
            )
            yield Job(
                f"generating-{dtype}{layout}",
                _benchmark(sizes, "benchmark_generating.py", *options, *ways),
            )
    detector = _benchmark(sizes, "benchmark_involution.py", *sizes.detector_maps, *backends)
    yield Job("operator-detector", detector)
    layers = ("benchmark_layers.py", *sizes.layers, "--batches", str(sizes.batch))
    yield Job("layers", _benchmark(sizes, *layers))
    for dtype in ("float32", "float16"):
        for layout, flag in LAYOUTS.items():
            experts = (*batch, *sizes.shapes, "--dtype", dtype, *flag)
            name = f"experts-{dtype}{layout}"
            yield Job(name, _benchmark(sizes, "benchmark_experts.py", *experts))


def networks(sizes: Sizes, args: argparse.Namespace) -> Iterator[Job]:
    """RedNet-50 against ResNet-50, and a detector with either."""
    classifier = (
        *("benchmark_model.py", f"{CONFIGS}/rednet50_imagenet.py", "--channels-last"),
        *("--peer", "torchvision.models:resnet50", *sizes.network),
    )
    inference = _benchmark(sizes, *classifier)
    training = _benchmark(sizes, *classifier, "--train")
    yield Job("network-training", training)
    yield Job("network-inference", inference)
    yield Job("network-inference-fused", inference, {"REDNET_BACKEND": sizes.fused})
    for mode in sizes.compiled:
        yield Job(f"network-training-{mode}", (*training, "--compile", mode))
        yield Job(f"network-inference-{mode}", (*inference, "--compile", mode))
    resnet = find_config("mmdet", "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    rednet = f"{CONFIGS}/detection/faster-rcnn_rednet50_fpn_1x_coco.py"
    detectors = ("benchmark_model.py", resnet, rednet, *sizes.detector)
    yield Job("detector-inference", _benchmark(sizes, *detectors))
    yield Job("detector-training", _benchmark(sizes, *detectors, "--train"))
    if sizes.device == "cuda":  # a detector's AMP needs one
        yield Job("detector-training-amp", _benchmark(sizes, *detectors, "--train", "--amp"))


def find_config(package: str, path: str) -> str:
    """A config that an OpenMMLab package has installed.

    Raises:
        UserError: If the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the detectors need {package}")
    return str(Path(spec.origin).parent / ".mim/configs" / path)


def profile(sizes: Sizes, args: argparse.Namespace) -> Iterator[Job]:
    """Nsight Compute's view of the kernels, and all tilings of the CUDA backend's."""
    sections = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "WarpStateStats")
    ncu = (
        *("ncu", "--clock-control", "none"),
        *(part for section in sections for part in ("--section", section)),
    )
    one = ("--batch-size", str(sizes.batch), "--dtype")
    plain = sizes._replace(turns=1)
    for dtype in ("float32", "float16"):
        for passed in ("forward", "grad_input", "grad_weight"):
            options = (*one, dtype, *sizes.shapes, "--passes", passed)
            backends = ("--backends", sizes.backends[0])
            timed = _benchmark(plain, "benchmark_involution.py", *options, *backends)
            yield Job(f"ncu-{passed}-{dtype}", (*ncu, "--kernel-name", "involution", *timed))
        options = (*one, dtype, "--side", str(sizes.side), "--backends", sizes.fused)
        timed = _benchmark(plain, "benchmark_generating.py", *options)
        yield Job(f"ncu-generating-{dtype}", (*ncu, "--kernel-name", "generate", *timed))
        if sizes.device == "cuda":  # elsewhere there is nothing to launch
            for layout, flag in LAYOUTS.items():
                timed = _benchmark(sizes, "benchmark_tilings.py", *one, dtype, *flag)
                yield Job(f"tilings-{dtype}{layout}", timed)
            tiles = ("--tiles", "32x16", "64x16", "64x32", "128x32", "128x64", "256x16")
            timed = _benchmark(sizes, "benchmark_generating.py", *options, *tiles)
            yield Job(f"tiles-generating-{dtype}", timed)


def training(sizes: Sizes, args: argparse.Namespace) -> Iterator[Job]:
    """The demos of classification and detection, whose accuracy the CPU's is compared with."""
    demos, data = f"{CONFIGS}/demo", "{folder}/digits/"
    common = (*sizes.training, "--work-dir", "{out}", "--cfg-options", *sizes.training_options)
    train = str(ROOT / "tools/train.py")
    yield Job("classifier", _python(train, f"{demos}/rednet26_digits.py", *common))
    make = str(ROOT / "tools/dataset_converters/make_digits_coco.py")
    yield Job("digits", _python(make, data, "--overwrite", *sizes.images))
    parts = [f"{part}_dataloader.dataset.data_root={data}" for part in ("train", "val", "test")]
    annotations = f"{data}annotations/instances_val.json"
    parts += [f"{part}_evaluator.ann_file={annotations}" for part in ("val", "test")]
    for name in ("retinanet", "faster-rcnn"):
        config = f"{demos}/{name}_rednet26_digits.py"
        yield Job(name, _python(train, config, *common, *parts))


STEPS: dict[str, Callable[[Sizes, argparse.Namespace], Iterator[Job]]] = {
    step.__name__: step for step in (truth, figures, networks, profile, training)
}


def _run(job: Job, folder: Path, limit: float) -> dict[str, Any]:
    """Runs a job; says how it ended and how long it took."""
    began = time.monotonic()
    if shutil.which(job.command[0]) is None:
        return dict(job=job.name, ended=f"{job.command[0]} is not installed", seconds=0.0)
    places = {"{folder}": str(folder), "{out}": str(folder / job.name)}
    command = list(job.command)
    for placeholder, place in places.items():
        command = [part.replace(placeholder, place) for part in command]
    with (folder / f"{job.name}.log").open("w") as log:
        log.write(f"{' '.join(command)}\n\n")
        log.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **job.environment}, stdout=log, stderr=log
        )
        try:
            code = process.wait(limit)
            ended = "well" if code == 0 else f"with exit code {code}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = f"after {limit:.0f} s, killed"
    return dict(job=job.name, ended=ended, seconds=time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen steps.

    Raises:
        UserError: At the end, if a job did not end well.
    """
    args = _parse(arguments)
    check_output(args.folder, "the folder", folder=True)
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    sizes = REHEARSAL if args.rehearse else GPU
    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device; --rehearse runs the jobs on the CPU")
    machine, ends = describe_machine(torch.device(sizes.device)), []
    print(table_head("job", "ended", "s"))
    for step in args.steps:
        for job in STEPS[step](sizes, args):
            if args.jobs and job.name not in args.jobs:
                continue
            ends.append(_run(job, args.folder, args.limit))
            print(table_row(job.name, ends[-1]["ended"], f"{ends[-1]['seconds']:.0f}"), flush=True)
            write_results(args.folder / "jobs.json", machine, args, ends)
    failed = [end["job"] for end in ends if end["ended"] != "well"]
    if failed:
        raise UserError(f"{len(failed)} of {len(ends)} jobs did not end well: {', '.join(failed)}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for logs and results")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default: all"
    )
    parser.add_argument("--jobs", nargs="+", metavar="JOB", help="of the steps; default: all")
    parser.add_argument(
        "--published", metavar="FILE.py[:NAME]", help="the published kernel, as docs/performance.md"
    )
    parser.add_argument(
        "--limit", type=positive, default=600, help="seconds for a job (%(default)s)"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(main))
