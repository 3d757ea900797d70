from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rednet.layers import SAConv2d, conv_aws, saconv
from tests.layers.cases import randomized
from tests.tolerances import FLOAT16

needs_operators = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="mmcv's operators need torchvision"
)
USE_DEFORM = pytest.mark.parametrize(
    "use_deform", [False, pytest.param(True, marks=needs_operators)]
)
NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def test_golden_vectors(golden: Callable) -> None:
    vectors = golden("sac_s1")
    compared = vectors.check(SAConv2d(16, 24, 3, padding=1, bias=False))
    assert len(compared) == 10


def _random(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
        layer.weight_gamma.uniform_(0.5, 1.5)
        layer.weight_beta.normal_()
    return layer


@needs_operators
@pytest.mark.parametrize("use_deform", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "dilation", "groups"), [(3, 1, 1), (3, 2, 4), (1, 1, 1)])
def test_equals_mmcv(
    use_deform: bool, training: bool, stride: int, kernel_size: int, dilation: int, groups: int
) -> None:
    mmcv_ops = importlib.import_module("mmcv.ops")
    if use_deform and kernel_size == 1:
        pytest.skip("mmcv's offsets fit a 3 x 3 kernel alone")
    geometry = dict(
        stride=stride, padding=dilation * (kernel_size // 2), dilation=dilation, groups=groups
    )
    arguments = dict(kernel_size=kernel_size, use_deform=use_deform, **geometry)
    theirs = _random(mmcv_ops.SAConv2d(8, 12, **arguments)).double().train(training)
    ours = SAConv2d(8, 12, **arguments).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    images = [torch.randn(3, 8, 9, 10, dtype=torch.float64, requires_grad=True)]
    images.append(images[0].detach().clone().requires_grad_())
    outputs = [layer(image) for layer, image in zip((ours, theirs), images, strict=True)]
    cotangent = torch.randn_like(outputs[0])
    torch.autograd.backward(outputs, [cotangent, cotangent])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(images[0].grad, images[1].grad)
    parameters = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[key].grad, msg=key)


@USE_DEFORM
@pytest.mark.parametrize("padding", [0, 1, 2, "same"])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, (1, 3)])
@pytest.mark.parametrize("size", [(4, 3), (9, 12)])
def test_switched_off_it_is_the_convolution(
    use_deform: bool, padding: object, kernel_size: object, size: tuple[int, int]
) -> None:
    arguments = dict(in_channels=4, out_channels=6, kernel_size=kernel_size, padding=padding)
    convolution = nn.Conv2d(**arguments)
    layer = SAConv2d(**arguments, use_deform=use_deform)
    _random(layer).load_state_dict(convolution.state_dict())
    image = torch.randn(2, 4, *size)
    torch.testing.assert_close(layer(image), convolution(image), rtol=1e-4, atol=1e-5)


@USE_DEFORM
@pytest.mark.parametrize("padding", [0, 1, 2, "same"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 5), (9, 12)])
def test_switched_on_it_is_the_dilated_convolution_of_the_same_centers(
    use_deform: bool, padding: object, stride: int, size: tuple[int, int]
) -> None:
    if stride == 2 and padding == "same":
        pytest.skip("nn.Conv2d has no such geometry")
    layer = SAConv2d(4, 6, 3, stride=stride, padding=padding, use_deform=use_deform)
    nn.init.zeros_(layer.switch.bias)
    nn.init.normal_(layer.weight_diff)
    image = torch.randn(2, 4, *size)
    wide = nn.functional.pad(image, (10, 10, 10, 10))
    first = 10 - 2 - (1 if padding == "same" else padding)
    rows, columns = layer.output_size(*size)
    expected = nn.functional.conv2d(
        wide[..., first:, first:], layer.kernel() + layer.weight_diff, None, stride, 0, 3
    )[..., :rows, :columns]
    torch.testing.assert_close(layer(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_the_wide_kernel_pads_small_images_in_any_mode(mode: str) -> None:
    layer = SAConv2d(4, 6, 3, padding=1, padding_mode=mode)
    nn.init.zeros_(layer.switch.bias)
    image = torch.randn(2, 4, 2, 3)
    expected = nn.functional.conv2d(
        torch.from_numpy(
            np.pad(image.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode=NUMPY_MODES[mode])
        ),
        layer.kernel(),
        dilation=3,
    )
    torch.testing.assert_close(layer(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 5)])
def test_the_switch_averages_a_small_map_by_repeated_reflection(size: tuple[int, int]) -> None:
    layer = SAConv2d(1, 1, 3, padding=1).double()
    nn.init.ones_(layer.switch.weight)
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    padded = torch.from_numpy(np.pad(image[0, 0].numpy(), 2, mode="reflect"))
    switch = 1 + nn.functional.avg_pool2d(padded[None, None], 5, 1)
    near = nn.functional.conv2d(image, layer.kernel(), padding=1)
    far = nn.functional.conv2d(image, layer.kernel(), padding=3, dilation=3)
    torch.testing.assert_close(layer(image), switch * near + (1 - switch) * far)


def test_the_switch_map_is_what_mixes_the_two_convolutions() -> None:
    layer = _random(SAConv2d(4, 6, 3, stride=2, padding=1)).double()
    input = torch.randn(2, 4, 9, 10, dtype=torch.float64)
    switch = layer.switch_map(input)
    assert switch.shape == (2, 1, 5, 5)

    # Without contexts, the output between the two dilations is the switch's mixture of them.
    for context in (layer.pre_context, layer.post_context):
        nn.init.zeros_(context.weight)
        nn.init.zeros_(context.bias)
    switch = layer.switch_map(input)
    small = layer.kernel()
    near = F.conv2d(input, small, None, 2, 1)
    far = F.conv2d(input, small + layer.weight_diff, None, 2, 3, dilation=3)
    torch.testing.assert_close(layer(input), switch * near + (1 - switch) * far)


def test_a_published_bias_that_no_output_uses_is_dropped() -> None:
    layer = SAConv2d(4, 6, 3)
    image = torch.randn(2, 4, 5, 5)
    expected = layer(image)
    layer.load_state_dict({**layer.state_dict(), "bias": torch.ones(6)}, strict=True)
    torch.testing.assert_close(layer(image), expected)


@needs_operators
@pytest.mark.parametrize("dtype", [FLOAT16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_deformable_in_16_bits(dtype: torch.dtype, autocast: bool) -> None:
    layer = _random(SAConv2d(4, 6, 3, stride=2, padding=1, use_deform=True))
    image = torch.randn(2, 4, 2, 7)
    expected = layer(image)
    if not autocast:
        layer, image = layer.to(dtype), image.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        output = layer(image.to(memory_format=torch.channels_last))
    output.sum().backward()
    assert output.dtype == dtype
    assert (output - expected).norm() < 0.2 * expected.norm()


@needs_operators
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_deformable_for_any_batch(batch: int) -> None:
    layer = _random(SAConv2d(4, 6, 3, padding=1, use_deform=True)).double()
    image = torch.randn(batch, 4, 5, 5, dtype=torch.float64)
    output = layer(image)
    assert output.shape == (batch, 6, 5, 5)
    for index in range(0, batch, 11):
        torch.testing.assert_close(layer(image[index : index + 1]), output[index : index + 1])


@needs_operators
@pytest.mark.parametrize("stride", [2, (1, 3)])
@pytest.mark.parametrize("size", [(1, 7), (7, 1), (2, 1)])
def test_deformable_on_images_smaller_than_the_kernel(
    stride: object, size: tuple[int, int]
) -> None:
    arguments = dict(stride=stride, padding=2, use_deform=True)
    layer = SAConv2d(4, 6, 5, **arguments).double()  # new: its offsets are zero
    plain = SAConv2d(4, 6, 5, **arguments | dict(use_deform=False)).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    image = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(image), plain(image))


@pytest.mark.parametrize(
    ("size", "padded", "grown"),
    [((1, 7), (5, 7), (2, 0)), ((7, 1), (7, 7), (0, 2)), ((5, 5), (5, 5), (0, 0))],
)
def test_mmcvs_operator_gets_images_of_the_kernels_size(
    size: tuple[int, int], padded: tuple[int, int], grown: tuple[int, int]
) -> None:
    image, more = saconv._at_least(torch.ones(1, 1, *size), (5, 5), (2, 3))
    assert (*image.shape[2:],) == padded and more == grown
    assert image.sum() == size[0] * size[1]


@pytest.mark.parametrize(("batch", "step"), [(1, 1), (6, 6), (33, 11), (64, 32), (37, 1)])
def test_deformable_takes_as_many_images_as_mmcv(batch: int, step: int) -> None:
    assert saconv._step(batch) == step


def test_deformable_needs_mmcvs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    with pytest.raises(ImportError, match="use_deform=True needs the operators of mmcv"):
        SAConv2d(4, 6, 3, use_deform=True)


@USE_DEFORM
def test_both_convolutions_share_what_they_need(
    use_deform: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: object, **kwargs: object) -> torch.Tensor:
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(conv_aws, "standardize")
    count(nn.functional, "avg_pool2d")
    SAConv2d(4, 6, 3, padding=1, use_deform=use_deform)(torch.randn(2, 4, 5, 5))
    assert sorted(calls) == ["avg_pool2d", "standardize"]


@USE_DEFORM
def test_deployed_the_kernel_is_standardized_once(use_deform: bool) -> None:
    layer = _random(SAConv2d(4, 6, 3, padding=1, use_deform=use_deform)).eval()
    image = torch.randn(2, 4, 5, 5)
    expected = layer(image)
    deployed = layer.switch_to_deploy()
    torch.testing.assert_close(deployed(image), expected)
    torch.testing.assert_close(deployed.switch_to_deploy()(image), expected)
    assert not {"weight_gamma", "weight_beta"} & set(deployed.state_dict())
    convolution = nn.Conv2d(4, 6, 3, padding=1)
    deployed.load_state_dict(convolution.state_dict(), strict=True)
    torch.testing.assert_close(deployed(image), convolution(image))


@pytest.mark.parametrize("use_deform", [False, True])
@pytest.mark.parametrize("options", [(False, True), (True, False), (False, False)])
def test_context_and_switch_can_be_left_out(options: tuple[bool, bool], use_deform: bool) -> None:
    if use_deform:
        pytest.importorskip("mmcv.ops")
    use_context, use_switch = options
    layer = SAConv2d(
        4, 6, 3, 2, 1, use_deform=use_deform, use_context=use_context, use_switch=use_switch
    )
    names = {name.partition(".")[0] for name in layer.state_dict()}
    assert ("pre_context" in names, "switch" in names) == options
    assert ("bias" in names, "share" in names) == (not use_context, not use_switch)
    plain = nn.Conv2d(4, 6, 3, 2, 1)
    layer.load_state_dict(plain.state_dict())
    image = torch.rand(2, 4, 9, 11)
    torch.testing.assert_close(layer(image), plain(image), rtol=1e-4, atol=1e-5)
    assert layer.switch_map(image).shape == (2, 1, 5, 6)
    layer = randomized(layer)
    layer(image).square().sum().backward()
    assert all(each.grad is not None for each in layer.parameters())


def test_a_share_weights_the_two_dilations() -> None:
    layer = randomized(
        SAConv2d(4, 6, 3, padding=1, bias=False, use_context=False, use_switch=False)
    )
    image = torch.rand(2, 4, 9, 11)
    kernel = layer.kernel()
    near = F.conv2d(image, kernel, padding=1)
    far = F.conv2d(image, kernel + layer.weight_diff, padding=3, dilation=3)
    expected = layer.share * near + (1 - layer.share) * far
    torch.testing.assert_close(layer(image), expected, rtol=1e-4, atol=1e-5)
