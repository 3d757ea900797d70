from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict

from rednet.errors import ArgumentError
from rednet.models import RedNet

TINY = dict(depth=26, stem_channels=32, base_channels=16)


def test_a_smaller_stem_kernel_is_read_into_the_center() -> None:
    small = RedNet(**TINY, stem_kernel_size=3).eval()
    large = RedNet(**TINY, stem_kernel_size=7).eval()
    large.load_state_dict(small.state_dict(), strict=True)
    image = torch.rand(1, 3, 33, 40)
    torch.testing.assert_close(large(image), small(image))


def test_mmengines_loading_below_a_prefix_widens_too() -> None:
    small = RedNet(**TINY, stem_kernel_size=5).eval()
    detector = torch.nn.ModuleDict(dict(backbone=RedNet(**TINY, stem_kernel_size=7))).eval()
    state = {f"backbone.{key}": value for key, value in small.state_dict().items()}
    load_state_dict(detector, state, strict=True)
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(detector["backbone"](image), small(image))
    assert state["backbone.stem.1.conv2.conv.weight"].shape[0] == 25  # the caller's is unharmed


def test_a_larger_stem_kernel_is_refused_also_without_strict_loading(tmp_path: Path) -> None:
    state = RedNet(**TINY, stem_kernel_size=7).state_dict()
    with pytest.raises(ArgumentError, match="7 x 7 kernel.* set stem_kernel_size=7"):
        RedNet(**TINY, stem_kernel_size=3).load_state_dict(state)
    torch.save(dict(state_dict=state), tmp_path / "detector.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"))
    with pytest.raises(ArgumentError, match="set stem_kernel_size=7"):
        RedNet(**TINY, stem_kernel_size=3, init_cfg=init_cfg).init_weights()


@pytest.mark.parametrize("shape", [(8, 4, 1, 1), (18,), ()])
def test_a_kernel_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    detector = torch.nn.ModuleDict(dict(backbone=RedNet(**TINY)))
    state = detector.state_dict()
    state["backbone.stem.1.conv2.conv.weight"] = torch.zeros(shape)
    with pytest.raises(ArgumentError, match="^backbone.stem.1.conv2.conv.weight .* square kernel"):
        detector.load_state_dict(state)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_half_of_a_smaller_stem_kernel_is_left_to_pytorch(missing: str) -> None:
    state = RedNet(**TINY, stem_kernel_size=3).state_dict()
    del state[f"stem.1.conv2.conv.{missing}"]
    with pytest.raises(RuntimeError, match=f'Missing key.*"stem.1.conv2.conv.{missing}"'):
        RedNet(**TINY, stem_kernel_size=7).load_state_dict(state)


def test_without_the_checkpoint_nothing_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = dict(type="Pretrained", checkpoint=None, prefix="backbone.")
    backbone = RedNet(**TINY, frozen_stages=1, norm_eval=True, init_cfg=pretrained)
    lines: list[tuple[str, int]] = []
    monkeypatch.setattr(
        "rednet.models.rednet.print_log",
        lambda message, logger, level: lines.append((message, level)),
    )
    backbone.init_weights()
    backbone.train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    ((message, level),) = lines
    assert "STARTS FROM SCRATCH" in message and level == logging.WARNING
    assert "model.backbone.init_cfg.checkpoint" in message
    assert pretrained["checkpoint"] is None


def test_with_a_checkpoint_stages_are_frozen(tmp_path: Path) -> None:
    path = tmp_path / "classifier.pth"
    given = RedNet(**TINY)
    state = {
        f"backbone.{key}": torch.full_like(value, 3) for key, value in given.state_dict().items()
    }
    torch.save(dict(state_dict=state), path)
    backbone = RedNet(
        **TINY,
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint=str(path), prefix="backbone."),
    )
    backbone.init_weights()
    backbone.train()
    assert not backbone.layer1.training and not backbone.layer2[0].bn1.training
    assert not any(each.requires_grad for each in backbone.stem.parameters())
    assert all((value == 3).all() for value in backbone.state_dict().values())
