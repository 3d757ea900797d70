"""Configs that leave our commands, and data and hooks that come from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from rednet.cli.arguments import config_parser
from rednet.cli.command import run
from rednet.cli.preflight import check_config
from rednet.errors import UserError
from tests.forked_programs import run_forked
from tests.image_folder import CLASSES, write_image_folder
from tools import test, train

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "rednet50_imagenet.py"
TINY = [
    "model.backbone.depth=26",
    "model.backbone.stem_channels=32",
    "model.backbone.base_channels=16",
    "model.head.in_channels=512",
    "model.head.num_classes=3",
    "train_dataloader.batch_size=3",
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
    "train_dataloader.dataset.pipeline.1.scale=32",
    "train_cfg.max_epochs=1",
    "param_scheduler=None",
]

pytest.importorskip("mmpretrain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a stock ResNet config, changed to RedNet by options alone."""
    work_dir = tmp_path_factory.mktemp("work")
    stock = work_dir / "stock.py"
    config = Config.fromfile(CONFIG)
    config.pop("custom_imports")
    config.model.backbone = dict(type="ResNet", depth=18)
    config.dump(stock)
    assert "rednet" not in stock.read_text()
    options = [
        "model.backbone._delete_=True",
        "model.backbone.type=RedNet",
        *TINY,
        f"train_dataloader.dataset.data_root={folder}",
        "custom_hooks=[dict(type=EMAHook, momentum=0.1)]",
    ]
    assert (
        run(
            train.main,
            [str(stock), "--work-dir", str(work_dir), "--no-validate", "--cfg-options", *options],
        )
        == 0
    )
    return work_dir


def test_the_dumped_config_stands_on_its_own(trained: Path) -> None:
    code = f"""
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
config = Config.fromfile({str(trained / "stock.py")!r})
init_default_scope(config.default_scope)
model = MODELS.build(config.model)
from mmengine.registry import HOOKS
known = [HOOKS.get(each["type"]) is not None for each in config.custom_hooks]
print(type(model.backbone).__name__, len(known) >= 2, all(known))
"""
    done = run_forked(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "RedNet True True"


def test_hooks_by_option_run(trained: Path) -> None:
    checkpoint = torch.load(trained / "epoch_1.pth", weights_only=False)
    assert "ema_state_dict" in checkpoint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[dict(type=EMAHook)]", [dict(type="EMAHook")]),
        (
            "[dict(type='A', b=(1, 2)), {'type': mmdet.B, 'c': -0.5}]",
            [dict(type="A", b=(1, 2)), dict(type="mmdet.B", c=-0.5)],
        ),
        ("dict(a=[True, None, x], b=dict(c=1e-3))", dict(a=[True, None, "x"], b=dict(c=1e-3))),
    ],
)
def test_dicts_in_options(text: str, value: object) -> None:
    options = (
        config_parser("").parse_args(["c.py", "--cfg-options", f"a.b={text}", "c=1"]).cfg_options
    )
    assert options == {"a.b": value, "c": 1}


@pytest.mark.parametrize(
    "text", ["[dict(type=EMAHook]", "dict(open('x'))", "[dict(a=f(1))]", "dict(**a)"]
)
def test_no_code_in_options(text: str) -> None:
    with pytest.raises(UserError, match=r"^--cfg-options a=.*: expected dict\(key=value\)"):
        config_parser("").parse_args(["c.py", "--cfg-options", f"a={text}"])


@pytest.mark.parametrize("hooks", ["[EMAHook]", "EMAHook"])
def test_hooks_that_are_no_dicts(
    hooks: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(CONFIG), "--work-dir", str(tmp_path), "--cfg-options", f"custom_hooks={hooks}"]
    assert run(train.main, arguments) == 2
    assert "custom_hooks must be a list of dicts" in capsys.readouterr().err


# ---- data


def _config(dataset: dict) -> Config:
    return Config(dict(default_scope="mmpretrain", train_dataloader=dict(dataset=dataset)))


def test_data_that_is_downloaded_need_not_be_there(tmp_path: Path) -> None:
    dataset = dict(type="CIFAR10", data_root=str(tmp_path / "none"), split="train")
    assert check_config(_config(dataset), ["train_dataloader"]) == []
    wrapped = dict(type="RepeatDataset", times=2, dataset=dataset)
    assert check_config(_config(wrapped), ["train_dataloader"]) == []
    with pytest.raises(UserError, match="none does not exist.* or let it be downloaded by dataset"):
        check_config(_config({**dataset, "download": False}), ["train_dataloader"])


def test_any_registered_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Dataset):
        def __init__(self, length: int) -> None:
            self.length = length

        def __len__(self) -> int:
            return self.length

    monkeypatch.setitem(DATASETS.module_dict, "Plain", Plain)
    monkeypatch.setitem(DATASETS.module_dict, "make_plain", lambda length: Plain(length))
    for kind in ("Plain", "make_plain"):
        assert check_config(_config(dict(type=kind, length=3)), ["train_dataloader"]) == []


def test_a_resumed_trainings_config_tests_bare_weights(trained: Path, tmp_path: Path) -> None:
    state_dict = torch.load(trained / "epoch_1.pth", weights_only=False)["state_dict"]
    torch.save(dict(state_dict=state_dict), tmp_path / "published.pth")
    config = Config.fromfile(trained / "stock.py")
    config.resume = True
    config.dump(tmp_path / "resumed.py")
    files = [str(tmp_path / "resumed.py"), str(tmp_path / "published.pth")]
    data = f"test_dataloader.dataset.data_root={config.train_dataloader.dataset.data_root}"
    more = ["--work-dir", str(tmp_path), "--cfg-options", data, "test_dataloader.num_workers=0"]
    assert run(test.main, [*files, *more]) == 0


# ---- inferencers


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mmpretrains_inferencers(folder: Path, trained: Path) -> None:
    apis = pytest.importorskip("mmpretrain.apis")
    image = str(next((folder / "val" / CLASSES[0]).iterdir()))
    inferencer = apis.ImageClassificationInferencer(
        str(trained / "stock.py"), pretrained=str(trained / "epoch_1.pth"), device="cpu"
    )
    (result,) = inferencer(image, show_dir=None)
    assert 0 <= result["pred_label"] < 3
    named = apis.ImageClassificationInferencer("rednet26_imagenet", device="cpu")
    assert named(image)[0]["pred_scores"].shape == (1000,)
    features = apis.FeatureExtractor("rednet26_imagenet", device="cpu")(image)
    assert features[0][-1].shape == (2048,)
