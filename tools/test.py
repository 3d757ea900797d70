"""Evaluate a checkpoint with a config of mmpretrain's, mmdet's or mmseg's form."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner

from rednet.cli.arguments import add_runner_arguments, config_parser, positive
from rednet.cli.command import run
from rednet.cli.config import read_config
from rednet.cli.config_keys import fields
from rednet.cli.failures import run_loops, setting_up
from rednet.cli.model import scope_of
from rednet.cli.paths import check_checkpoint, check_output
from rednet.cli.preflight import check_config
from rednet.cli.processes import set_up_cpu_processes
from rednet.cli.runner import build_runner, set_up_run
from rednet.errors import UserError
from rednet.files import write_file

FLIP_META = ("flip", "flip_direction")
# mmseg takes the annotations from the first view, which therefore is the image itself.
FLIPS = [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)]
# Per library: the model that merges the views of an image, and the metric that dumps predictions.
TTA_MODELS: dict[str, dict] = {
    "mmpretrain": dict(type="mmpretrain.AverageClsScoreTTA"),
    "mmdet": dict(
        type="DetTTAModel",
        tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
    "mmseg": dict(type="SegTTAModel"),
}
DUMPS = {"mmdet": "mmdet.DumpDetResults"}
# How the file of --out may end.
SUFFIXES = {"pred": (".pkl", ".pickle"), "metrics": (".json", ".pkl", ".pickle")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates as the arguments say."""
    args = _parse(arguments)
    with setting_up():
        runner, item = _set_up(args)
    metrics, _ = run_loops(runner, runner.test)
    if item == "metrics" and is_main_process():
        content = mmengine.dump(metrics, file_format=Path(args.out).suffix[1:])
        write_file(args.out, content if isinstance(content, bytes) else content.encode())


def _set_up(args: argparse.Namespace) -> tuple[Runner, str | None]:
    """Reads and checks the config; returns the runner, and what is to be saved, if anything."""
    check_checkpoint(args.checkpoint, "the checkpoint")
    config, notes = read_config(args.config, args.cfg_options)
    item = _check_out(args.out, args.out_item, scope_of(config))
    set_up_run(config, args)
    config.load_from = args.checkpoint
    config.resume = False  # which a resumed training leaves in the config of its work directory
    if args.amp:
        config.test_cfg.fp16 = True
    if args.show or args.show_dir:
        _draw_predictions(config, args)
    notes += check_config(config, ["test_dataloader"])
    if args.tta:
        _use_tta(config)
    set_up_cpu_processes(config)
    runner = build_runner(config, notes, partial=args.partial)
    if item == "pred":
        runner.test_evaluator.metrics.append(_dump(scope_of(config), args.out))
    if item == "masks":
        runner.register_hook(_SavedMasks(args.out))
    return runner, item


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="evaluate a checkpoint of which only a part fits the model",
    )
    parser.add_argument(
        "--out",
        help="save the predictions (.pkl; with mmseg a folder of PNGs) or the metrics (.json)",
    )
    parser.add_argument(
        "--out-item",
        choices=["pred", "metrics"],
        help="what --out saves, where its suffix should not decide",
    )
    parser.add_argument(
        "--show-dir",
        help="folder for pictures of the predictions, of several processes the first one's",
    )
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds that --show shows each")
    parser.add_argument(
        "--interval",
        type=positive,
        default=1,
        help="draw every N-th image (mmpretrain) or batch (mmseg)",
    )
    parser.add_argument(
        "--tta", action="store_true", help="average over flips, or the config's views"
    )
    add_runner_arguments(parser)
    return parser.parse_args(arguments)


def _check_out(path: str | None, item: str | None, scope: str | None) -> str | None:
    """What is to be saved, if anything."""
    if path is None:
        if item is not None:
            raise UserError(f"--out-item {item} needs --out FILE")
        return None
    item = item or ("metrics" if path.endswith(".json") else "pred")
    if scope == "mmseg" and item == "pred":
        if Path(path).suffix:
            raise UserError(
                f"--out must be a folder for mmseg's predictions or end in .json for metrics, got "
                f"{path}"
            )
        check_output(path, "--out", folder=True)
        return "masks"
    if not path.endswith(SUFFIXES[item]):
        raise UserError(
            f"--out must end in .pkl for predictions or in .json for metrics, got {path}"
        )
    check_output(path, "--out")
    return item


def _draw_predictions(config: Config, args: argparse.Namespace) -> None:
    folder = None
    if args.show_dir:
        check_output(args.show_dir, "--show-dir", folder=True)
        folder = str(Path(args.show_dir).absolute())  # mmdet's would lie in the work directory
    if args.tta and scope_of(config) == "mmpretrain":
        raise UserError(
            "mmpretrain draws no pictures of several views: leave out --tta or --show-dir"
        )
    if args.interval != 1 and scope_of(config) == "mmdet":
        raise UserError(f"--interval {args.interval}: mmdet draws every image, leave it out")
    hook = config.get("default_hooks", {}).get("visualization")
    if hook is None:
        raise UserError(
            "--show and --show-dir need default_hooks.visualization in the config: "
            "--cfg-options default_hooks.visualization.type=VisualizationHook"
        )
    hook.update(show=args.show, wait_time=args.wait_time, interval=args.interval)
    if scope_of(config) == "mmdet":
        hook.update(draw=True, test_out_dir=folder)
    elif scope_of(config) == "mmseg":
        hook.update(draw=True)
        # Where a training is configured, mmseg's hook builds it, data included.
        for field in ("train_cfg", "train_dataloader", "optim_wrapper", "param_scheduler"):
            config[field] = None
        if folder:  # below it, in vis_data/vis_image
            config.visualizer.save_dir = folder
    else:
        hook.update(enable=True, out_dir=folder)


class _SavedMasks(Hook):
    """Lets mmseg's metric write the predicted class of every pixel, one PNG for each image.

    The metric itself creates its folder before the checkpoint is loaded, and so leaves an empty one
    if that fails.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def before_test(self, runner: Runner) -> None:
        """Creates the folder and gives it to the metric."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        runner.test_evaluator.metrics[0].output_dir = self.folder


def _dump(scope: str | None, path: str) -> BaseMetric:
    """The metric that saves the predictions, in one step instead of over an earlier file."""

    def save(results: list) -> dict[str, float]:
        write_file(path, mmengine.dump(results, file_format="pkl"))
        return {}

    metric = METRICS.build(dict(type=DUMPS.get(scope or "", "DumpResults"), out_file_path=path))
    metric.compute_metrics = save
    return metric


def _use_tta(config: Config) -> None:
    scope = scope_of(config)
    merge = config.get("tta_model") or TTA_MODELS.get(scope or "")
    if merge is None:
        raise UserError(f"--tta needs tta_model in a config of scope {scope}")
    masks = [
        key for key, head in fields(config.model, "model") if key.endswith(".mask_head") and head
    ]
    if "DetTTAModel" in str(merge["type"]) and masks:
        raise UserError(
            f"--tta: mmdet merges boxes and no masks, and there is {masks[0]}: leave it out"
        )
    dataset = config.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    dataset.pipeline = config.get("tta_pipeline") or _flip_pipeline(dataset.pipeline, scope)
    config.model = ConfigDict(**merge, module=config.model)


def _flip_pipeline(pipeline: list, scope: str | None) -> list:
    """The pipeline with its last step, which packs the inputs, done for both flips."""
    *steps, pack = deepcopy(pipeline)
    if scope == "mmdet":
        meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", *FLIP_META)
        pack = dict(type="PackDetInputs", meta_keys=meta)
    return [*steps, dict(type="TestTimeAug", transforms=[FLIPS, [pack]])]


if __name__ == "__main__":
    sys.exit(run(main))
