from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rednet.errors import ArgumentError
from rednet.layers import ACBlock, acblock
from tests.layers.cases import randomized
from tests.tolerances import assert_close


def test_golden_vectors(golden: Callable) -> None:
    vectors = golden("acb_k3_s2")
    block = ACBlock(8, 12, 3, stride=2, padding=1)
    compared = vectors.check(block)
    assert len(compared) == 11
    weight, bias = block.fuse()
    torch.testing.assert_close(weight, vectors.deploy["weight"])
    torch.testing.assert_close(bias, vectors.deploy["bias"])


def _published(block: ACBlock, image: Tensor) -> Tensor:
    """The three branches by the book, with the thin kernels as square ones of mostly zeros."""
    rows, columns = (size // 2 for size in block.kernel_size)
    output = 0
    for name in block.branches:
        weight = torch.zeros(block.plain_weight_shape, dtype=image.dtype)
        thin = getattr(block, f"{name}_conv").weight
        if name == "square":
            weight = thin
        elif name == "ver":
            weight[..., columns : columns + 1] = thin
        else:
            weight[..., rows : rows + 1, :] = thin
        output = output + getattr(block, f"{name}_bn")(block.convolve(image, weight))
    return output


GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=2, stride=2, dilation=2),
    dict(kernel_size=3, padding=0, groups=2),
    dict(kernel_size=5, padding=1, stride=2),
    dict(kernel_size=5, padding=4),
    dict(kernel_size=(3, 5), padding=(2, 0), dilation=(1, 2)),
    dict(kernel_size=2, padding=1),
    dict(kernel_size=4, padding=0, stride=(1, 2)),
    dict(kernel_size=4, padding="same"),
    dict(kernel_size=1),
    dict(kernel_size=3, padding=1, padding_mode="reflect"),
    dict(kernel_size=(4, 3), padding=2, padding_mode="circular"),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(7, 10), (31, 30)])
def test_thin_kernels_lie_on_the_middle_of_the_square_one(
    geometry: dict, training: bool, size: tuple[int, int]
) -> None:
    block = randomized(ACBlock(4, 6, **geometry)).double().train(training)
    other = copy.deepcopy(block)
    image = torch.randn(2, 4, *size, dtype=torch.float64)
    assert_close(block(image), _published(other, image))
    torch.testing.assert_close(block.state_dict(), other.state_dict())


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_deployed_it_is_one_convolution(geometry: dict) -> None:
    block = randomized(ACBlock(4, 6, **geometry)).eval()
    image = torch.randn(2, 4, 9, 12)
    expected = block(image)
    deployed = block.switch_to_deploy()
    assert deployed is block and block.deploy
    assert sorted(block.state_dict()) == ["fused_conv.bias", "fused_conv.weight"]
    torch.testing.assert_close(block(image), expected)
    torch.testing.assert_close(block.switch_to_deploy()(image), expected)
    built = ACBlock(4, 6, **geometry, deploy=True)
    built.load_state_dict(block.state_dict(), strict=True)
    torch.testing.assert_close(built(image), expected)


@pytest.mark.parametrize("learns_affine", [True, False])
def test_as_one_convolution_it_has_the_branches_gradients(
    monkeypatch: pytest.MonkeyPatch, learns_affine: bool
) -> None:
    block = randomized(ACBlock(4, 6, (3, 4), padding=1)).double()
    for norm in (block.square_bn, block.ver_bn, block.hor_bn):
        norm.eval().requires_grad_(learns_affine)
    image = torch.randn(2, 4, 12, 13, dtype=torch.float64, requires_grad=True)
    learned = [image, *(each for each in block.parameters() if each.requires_grad)]
    assert len(learned) == (10 if learns_affine else 4)
    gradients = []
    for threshold in (1, 1000):
        monkeypatch.setattr(acblock, "FUSED_FROM_PIXELS", threshold)
        output = block(image).square().sum()
        gradients.append(torch.autograd.grad(output, learned))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("batch", "fuses"), [(1, False), (4, True)])
def test_the_pixels_of_all_images_decide_whether_it_is_one_convolution(
    batch: int, fuses: bool
) -> None:
    block = ACBlock(4, 6, 3, padding=1).eval()
    called = []
    block.fuse = lambda: called.append(True) or ACBlock.fuse(block)
    block(torch.randn(batch, 4, 7, 7))
    assert called == [True] * fuses


@pytest.mark.parametrize("changed", ["bias", "stride", "dilation"])
def test_branches_that_were_changed_are_computed_as_they_are(changed: str) -> None:
    block = randomized(ACBlock(4, 6, (3, 1), padding=(2, 0), branches=["square"])).eval()
    image = torch.randn(2, 4, 9, 9)
    value = nn.Parameter(torch.randn(6)) if changed == "bias" else (2, 1)
    setattr(block.square_conv, changed, value)
    expected = block.square_bn(block.square_conv(image))
    assert_close(block(image), expected)
    if changed == "bias":
        assert_close(block.switch_to_deploy()(image), expected)
    else:
        with pytest.raises(ArgumentError, match="square_conv cannot be merged.*got"):
            block.switch_to_deploy()
        assert_close(block(image), expected)


def test_a_norm_with_a_hook_gives_the_same_sum() -> None:
    block = randomized(ACBlock(4, 6, 3, padding=1))
    image = torch.randn(2, 4, 5, 5)
    expected = block(image)
    block.square_bn.register_forward_hook(lambda *_: None)
    assert_close(block(image), expected)


@pytest.mark.parametrize("side", [5, 12])
def test_norms_in_eval_mode_alone_make_it_one_convolution(side: int) -> None:
    block = randomized(ACBlock(4, 6, 3, padding=1))
    image = torch.randn(2, 4, side, side)
    expected = copy.deepcopy(block).eval()(image)
    for norm in (block.square_bn, block.ver_bn, block.hor_bn):
        norm.eval()
    assert block.training
    torch.testing.assert_close(block(image), expected)
    block.hor_bn.train()
    assert not torch.allclose(block(image), expected)


@pytest.mark.parametrize("use_affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("deploy", [True, False])
def test_with_a_plain_convolutions_weights_it_is_the_convolution(
    use_affine: bool, bias: bool, deploy: bool
) -> None:
    convolution = nn.Conv2d(4, 6, 3, padding=1, bias=bias)
    block = ACBlock(4, 6, 3, padding=1, use_affine=use_affine, deploy=deploy).eval()
    randomized(block).load_state_dict(convolution.state_dict(), strict=True)
    image = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(image), convolution(image))


def test_thin_kernels_learn_after_a_plain_convolutions_weights() -> None:
    block = ACBlock(4, 6, 3, padding=1)
    block.load_state_dict(nn.Conv2d(4, 6, 3).state_dict())
    block(torch.randn(2, 4, 5, 5)).square().sum().backward()
    assert block.ver_bn.weight.grad.abs().min() > 0


def test_gamma_init() -> None:
    block = ACBlock(4, 6, 3, gamma_init=1 / 3)
    for norm in (block.square_bn, block.ver_bn, block.hor_bn):
        torch.testing.assert_close(norm.weight, torch.full((6,), 1 / 3))
    with pytest.raises(ValueError, match=r"gamma_init must be None with use_affine=False.*got 0.5"):
        ACBlock(4, 6, 3, gamma_init=0.5, use_affine=False)


def test_tools_that_fold_norms_leave_the_branches_alone() -> None:
    from mmcv.cnn.utils import fuse_conv_bn

    block = randomized(ACBlock(4, 6, 3, padding=1)).eval()
    image = torch.randn(2, 4, 5, 5)
    expected = block(image)
    torch.testing.assert_close(fuse_conv_bn(block)(image), expected)


def test_cropping_reads_only_what_the_square_kernel_reads() -> None:
    block = randomized(ACBlock(1, 1, 3)).train()
    image = torch.randn(1, 1, 5, 5)
    image[..., 0, 0] = torch.nan
    ver = block.ver_conv(block._cropped(image, "ver"))
    expected = F.conv2d(image[..., 1:-1], block.ver_conv.weight)
    torch.testing.assert_close(ver, expected)
    assert ver.isfinite().all()


@pytest.mark.parametrize(
    "branches",
    [["square"], ("hor", "square"), ("square", "ver"), ("ver", "hor"), ["ver"], ["hor"]],
    ids="-".join,
)
def test_branches_can_be_left_out(branches: list[str]) -> None:
    geometry = dict(kernel_size=(3, 5), padding=(1, 2), stride=(1, 2))
    block = randomized(ACBlock(4, 6, **geometry, branches=branches)).double()
    built = {name.partition("_")[0] for name in block.state_dict()}
    assert built == set(branches)
    image = torch.randn(2, 4, 15, 31, dtype=torch.float64)
    trained = block.train()(image)
    expected = _published(block, image)
    torch.testing.assert_close(trained, expected, rtol=1e-10, atol=1e-12)
    block.eval()
    expected = _published(block, image)
    torch.testing.assert_close(block(image), expected, rtol=1e-10, atol=1e-12)
    small = image[..., :7, :7]  # too small to be worth one convolution
    torch.testing.assert_close(block(small), _published(block, small), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(block.switch_to_deploy()(image), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("branches", [["square"], ("hor", "square"), ("square", "ver")])
def test_a_block_with_a_square_branch_loads_plain_weights(branches: list[str]) -> None:
    plain = nn.Conv2d(4, 6, 3, padding=1)
    block = ACBlock(4, 6, 3, padding=1, branches=branches)
    block.load_state_dict(plain.state_dict())
    image = torch.randn(2, 4, 15, 17)
    torch.testing.assert_close(block.eval()(image), plain(image), rtol=1e-4, atol=1e-5)


def test_a_block_without_a_square_branch_refuses_plain_weights() -> None:
    block = ACBlock(4, 6, 3, padding=1, branches=("ver", "hor"))
    with pytest.raises(RuntimeError, match="Missing key.*ver_conv.weight"):
        block.load_state_dict(nn.Conv2d(4, 6, 3, padding=1).state_dict())


@pytest.mark.parametrize("branches", [(), ("square", "diagonal")])
def test_unknown_branches_and_none_are_refused(branches: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError, match="branches must be one or more of"):
        ACBlock(4, 6, 3, branches=branches)
