"""What can be given wrong to the commands: each is one line that names it, and exit code 2."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain")

from mmengine.config import Config

from rednet.cli.command import run
from rednet.cli.failures import describe
from tests.forked_programs import run_tool
from tools import train
from tools.analysis_tools import get_flops
from tools.model_converters import convert_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = f"""
_base_ = ["{ROOT}/configs/demo/rednet26_digits.py"]
model = dict(backbone=dict(stem_channels=32, base_channels=16), head=dict(in_channels=512))
train_dataloader = dict(batch_size=2, dataset=dict(indices=2))
val_dataloader = dict(batch_size=2, dataset=dict(indices=2))
train_cfg = dict(max_epochs=1)
custom_hooks = []
"""

# The text of a config file, and what the line says.
FILES = {
    "a = (": "line 1: SyntaxError: '(' was never closed",
    "a = 1\nb = c": "line 2: NameError: name 'c' is not defined",
    "a = 1 / 0": "line 1: ZeroDivisionError: division by zero",
    "_base_ = ['nope.py']": "nope.py: no such file or directory",
    "_base_ = ['mmdet::x/nope.py']": "nope.py",
    "_base_ = ['mmnope::x/nope.py']": "mmengine does not support to load mmnope config",
    "custom_imports = dict(imports=['nope'])": "Failed to import custom modules",
    "custom_imports = dict(imports=5)": "custom_imports must be a list",
    "filename = 'a'": "filename is reserved",
    "raise SystemExit(0)": "line 1: SystemExit",
    "# \xff\x00": "bad.py: UnicodeDecodeError",
    "from mmengine.config import read_base\nwith read_base():\n    from .nope import *": "nope.py",
    TINY + "optim_wraper = dict()": "nothing reads optim_wraper; did you mean optim_wrapper?",
    TINY + "custom_hook = []": "nothing reads custom_hook; did you mean custom_hooks?",
    TINY + "default_hooks = dict(chekpoint=dict(type='CheckpointHook'))": "default_hooks.chekpoint",
    "": "bad.py: model must be a dict, got None",
    "model = 5": "bad.py: model must be a dict, got 5",
    "model = dict()": "bad.py: model has no type",
}

# An option of a good config, and what the line says.
OPTIONS = {
    "model.type=ImageClasifier": "model.type='ImageClasifier' is not a registered model",
    "model.backbone.type=RedNt": "model.backbone.type='RedNt' is not a registered model",
    "model.backbone.depht=26": "no argument 'depht'; did you mean depth?",
    "model.backbone.norm.eps=1": "model.backbone.norm=dict(eps=1): RedNet has no argument 'norm'",
    "model.backbon.depth=26": "ImageClassifier has no argument 'backbon'; did you mean backbone?",
    "model.backbone.groups=2": "has no argument 'groups'; model.backbone._delete_=True replaces",
    "model.head.type=Head": "model.head.type='Head' is not a registered model",
    "model.backbone.depth=27": "model.backbone: depth must be one of",
    "model.backbone.norm_cfg.type=BM": "model.backbone: norm_cfg: no layer is registered as 'BM'",
    "model.backbone.init_cfg.type=Nope": "model.backbone.init_cfg.type='Nope' is not a registered",
    "model.head.num_classes=abc": "model.head.num_classes must be a number, got 'abc'",
    "model.head.loss.type=Loss": "model.head.loss.type='Loss' is not a registered",
    "model.train_cfg.augments.type=Nope": "augments.type='Nope' is not",
    "model=None": "model must be a dict, got None",
    "model.train_cfg.augment.type=Mixup": "model.train_cfg.augment=dict(type='Mixup'): ",
    "model.data_preprocessor.meen=1": "model.data_preprocessor.meen=1: ClsDataPreprocessor has no",
    "optim_wrapper.clip_grad.max_nrom=1": "clip_grad.max_nrom; did you mean max_norm?",
    "optim_wrapper.clip_grad.a=1": "nothing reads optim_wrapper.clip_grad.a",
    "optim_wrapper.paramwise_cfg.norm_decay_mul=0": "did you mean norm_decay_mult",
    "optim_wrapper.optimizer.type=SDG": "optimizer.type='SDG' is not a registered optimizer",
    "optim_wrapper.optimizer.lr=abc": "optim_wrapper.optimizer.lr must be a number, got 'abc'",
    "optim_wrapper.optimizer.lr=-1": "optim_wrapper.optimizer.lr=-1: Invalid learning rate: -1",
    "optim_wrapper.type=Nope": "optim_wrapper.type='Nope' is not a registered",
    "optim_wrapper.optimizer.lr=1e39": "optim_wrapper.optimizer: its step overflows; lr is",
    "optim_wrapper.optimizer.learning_rate=1": "optimizer.learning_rate=1: AdamW has no argument",
    "optim_wrapper.optimzer.lr=1": "did you mean optimizer?",
    "optim_wrapper=None": "should be either all None or not None",
    "train_cfg=None": "should be either all None or not None",
    "train_cfg.type=Nope": "Only one of `type` or",
    "train_cfg.max_epochs=abc": "train_cfg.max_epochs must be a number, got 'abc'",
    "train_cfg.max_epochs=0": "train_cfg.max_epochs must be at least 1, got 0",
    "train_cfg.max_epochs=-1": "train_cfg.max_epochs must be at least 1, got -1",
    "train_cfg.max_epochs=1.5": "train_cfg.max_epochs=1.5",
    "train_cfg.val_interval=x": "train_cfg.val_interval must be a number, got 'x'",
    "train_cfg.max_epoch=3": "did you mean max_epochs",
    "train_dataloader.batchsize=1": "did you mean batch_size",
    "train_dataloader.datset.indices=1": "did you mean dataset?",
    "train_dataloader.sampler.shufle=1": "did you mean shuffle?",
    "train_dataloader=None": "should be either all None or not None",
    "train_dataloader.batch_size=0": "train_dataloader.batch_size=0: batch_size should",
    "train_dataloader.batch_size=x": "train_dataloader.batch_size must be a number",
    "train_dataloader.dataset.indices=3": "batch norms cannot train on a batch of one image, which",
    "train_dataloader.num_workers=x": "train_dataloader.num_workers",
    "train_dataloader.num_workers=-1": "train_dataloader.num_workers=-1: num_workers option",
    "train_dataloader.sampler.type=Sampler": "train_dataloader.sampler.type='Sampler' is not",
    "train_dataloader.dataset.type=Digit": "train_dataloader.dataset.type='Digit' is not",
    "train_dataloader.dataset.split=tain": "train_dataloader.dataset",
    "train_dataloader.collate_fn.type=nope": "train_dataloader.collate_fn.type='nope' is not a",
    "train_dataloader.dataset.pipeline=[dict(type=Nope)]": "pipeline.0.type='Nope' is not",
    "train_dataloader.dataset.pipeline=5": "train_dataloader.dataset",
    "custom_hooks=[dict(type=TemperatureHook)]": "did you mean TemperatureAnnealHook",
    "custom_hooks=[dict(a=1)]": "custom_hooks.0=dict(a=1) needs a type",
    "custom_hooks=[dict(type=EMAHook,momentm=1)]": "error: custom_hooks.0.momentm=1: Exponential",
    "custom_hooks=[dict(type=TrainingCurveHook,intervall=1)]": "did you mean interval?",
    "custom_hooks=3": "custom_hooks must be a list of dicts",
    "default_hooks.checkpoint.type=ChekpointHook": "checkpoint.type='ChekpointHook' is not",
    "default_hooks.checkpoint.interval=x": "checkpoint.interval must be a number, got 'x'",
    "default_hooks.checkpoint.save_best=acc": "save_best='acc' is not among the metrics",
    "default_hooks.checkpoint.max_keep_ckpt=1": "checkpoint.max_keep_ckpt=1: SafeCheckpointHook",
    "default_hooks.visualization.enabel=1": "has no argument 'enabel'; did you mean enable?",
    "default_hooks.logger.intervall=1": "did you mean interval",
    "default_hooks.chekpoint.interval=1": "default_hooks.chekpoint; did you mean checkpoint?",
    "default_hooks.logger.interval=x": "default_hooks.logger.interval must be a number, got 'x'",
    "param_scheduler.0.type=Cosine": "param_scheduler.0.type='Cosine' is not a registered",
    "param_scheduler.0.bgin=1": "LinearLR has no argument 'bgin'; did you mean begin",
    "train_cfg.val_intervall=1": "did you mean val_interval",
    "val_cfg.fp15=True": "did you mean fp16?",
    "auto_scale_lr.enabel=True": "auto_scale_lr.enabel; did you mean enable?",
    "randomness.sede=1": "nothing reads randomness.sede; did you mean seed?",
    "compile.modee=x": "nothing reads compile.modee; did you mean mode or",
    "model.backbone.init_cfg.chekpoint=x": "init_cfg=dict(chekpoint='x') needs a type",
    "model.head.topkk=1": "model.head.topkk=1: LinearClsHead has no argument 'topkk'; did you mean",
    "env_cfg.mp_cfg.mp_start_methd=fork": "did you mean mp_start_method?",
    "param_scheduler.0.end=x": "param_scheduler.0",
    "val_evaluator.type=Acc": "val_evaluator.type='Acc' is not a registered metric",
    "val_evaluator.topk=x": "val_evaluator.topk must be a number, got 'x'",
    "visualizer.vis_backend.0.type=x": "did you mean vis_backends?",
    "log_processor.windw_size=1": "did you mean window_size?",
    "visualizer.type=Vis": "visualizer.type='Vis' is not a registered visualizer",
    "randomness.seed=x": "randomness",
    "env_cfg=5": "env_cfg",
    "default_scope=nope": "the config is written for nope, which is not installed",
    "load_from=file:///a.pth": "load_from file:///a.pth must be a path: leave out file://",
    "load_from=http://127.0.0.1:9/a.pth": "http://127.0.0.1:9/a.pth cannot be downloaded",
    "load_from=/nowhere.pth": "load_from /nowhere.pth is not a file",
    "modle.type=x": "nothing reads the field 'modle'; did you mean model",
    "model.backbone": "--cfg-options expects key=value, got 'model.backbone'",
    "a=[1,2": "--cfg-options a=[1,2: its brackets do not close",
}


@pytest.fixture
def line_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """The line that a command ends with; its traceback file is left in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.raiseExceptions", False)  # handlers of earlier tests
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def call(main: Callable, *arguments: str) -> str:
        assert run(main, arguments) == 2
        error = capsys.readouterr().err
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        named = re.search(r" \(traceback: (.*)\)$", line)
        assert named is None or "Traceback" in Path(named[1]).read_text()
        return line

    return call


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return str(path)


@pytest.mark.parametrize(("text", "message"), FILES.items(), ids=range(len(FILES)))
def test_a_config_file(
    line_of: Callable[..., str], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bad.py").write_bytes(text.encode("latin-1"))
    assert message in line_of(train.main, "bad.py")


@pytest.mark.parametrize(("option", "message"), OPTIONS.items(), ids=str)
def test_an_option(line_of: Callable[..., str], tiny: str, option: str, message: str) -> None:
    assert message in line_of(train.main, tiny, "--cfg-options", option)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "config a.json: Expecting property name"),
        ("a.yaml", "a: [1", "config a.yaml: ParserError: while parsing"),
        ("a.txt", "a", "config a.txt: Only py/yml/yaml/json type are supported"),
    ],
)
def test_other_files(
    line_of: Callable[..., str], tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    line = line_of(train.main, name)
    assert message.replace("Expecting", "JSONDecodeError: Expecting") in line or message in line


def test_resuming_fsdp(line_of: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "fsdp.py").write_text(TINY + "strategy = dict(type='FSDPStrategy')")
    message = "--resume: mmengine's FSDPStrategy cannot read the optimizer's state back"
    assert message in line_of(train.main, "fsdp.py", "--resume")
    assert message in line_of(train.main, "fsdp.py", "--cfg-options", "resume=True")


def test_arguments(line_of: Callable[..., str], tiny: str) -> None:
    assert "--work-dir must name a folder, got ''" in line_of(train.main, tiny, "--work-dir", "")
    assert "there is no config file gone.py" in line_of(train.main, "gone.py")


@pytest.mark.parametrize(
    ("launcher", "variable"), [("pytorch", "RANK"), ("slurm", "SLURM_PROCID"), ("mpi", "OMPI_COMM")]
)
def test_a_launcher_that_did_not_launch(
    line_of: Callable[..., str], tiny: str, launcher: str, variable: str
) -> None:
    line = line_of(train.main, tiny, "--launcher", launcher)
    assert f"--launcher: the environment variable {variable}" in line


def test_a_backend_that_is_none(
    line_of: Callable[..., str], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDNET_BACKEND", "nonsense")
    assert "REDNET_BACKEND" in line_of(train.main, tiny)


def test_other_commands(line_of: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("model = dict(type='mmpretrain.ImageClassifier')")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "a.pth").write_bytes(b"")
    assert "needs 'backbone'" in line_of(get_flops.main, "none.py")
    assert "model must be a dict, got None" in line_of(get_flops.main, "empty.py")


def test_converting_without_a_backbone(line_of: Callable[..., str], tmp_path: Path) -> None:
    import torch

    (tmp_path / "none.py").write_text("model = dict(type='mmpretrain.ImageClassifier')")
    torch.save(dict(state_dict={"stem.0.conv.weight": torch.zeros(1)}), tmp_path / "a.pth")
    line = line_of(convert_checkpoint.main, "a.pth", "b.pth", "--config", "none.py")
    assert "model.backbone must be a dict, got None" in line


def test_a_text_that_only_one_field_has() -> None:
    config = Config(dict(log_level="INFOO", model=dict(type="RedNet")))
    assert describe(KeyError("INFOO"), config) == "log_level='INFOO': KeyError: 'INFOO'"
    assert describe(KeyError("other"), config) == "KeyError: 'other'"


# ---- whole command lines


def test_a_whole_command(tiny: str) -> None:
    done = run_tool("train.py", tiny, "--cfg-options", "model.backbone.type=RedNt")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "(traceback: " in done.stderr
    assert "error: model.backbone.type='RedNt' is not a registered" in done.stderr


def test_the_traceback_is_printed_on_request(
    tiny: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [tiny, "--traceback", "--cfg-options", "model.backbone.type=RedNt"]
    assert run(train.main, arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "(traceback: " not in error
