from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rednet.layers import ODConv2d
from tests.layers.cases import randomized
from tests.tolerances import assert_close


def test_golden_vectors(golden: Callable) -> None:
    vectors = golden("odconv_k3_s2_n4")
    layer = ODConv2d(16, 24, 3, stride=2, padding=1, bias=False)
    assert len(vectors.check(layer)) == 14


def test_golden_vectors_load_into_a_layer_with_bias(golden: Callable) -> None:
    vectors = golden("odconv_k3_s2_n4")
    layer = ODConv2d(16, 24, 3, stride=2, padding=1)
    nn.init.ones_(layer.bias)
    assert len(vectors.check(layer)) == 14
    assert not layer.bias.any()


CASES = [
    dict(kernel_size=3, kernel_num=2),
    dict(kernel_size=(1, 2), stride=2, dilation=(1, 2), groups=2, kernel_num=3),
    dict(kernel_size=3, padding=1, groups=8, kernel_num=2),
    dict(kernel_size=3, padding=1, kernel_num=1),
    dict(kernel_size=1, kernel_num=2),
    dict(kernel_size=1, kernel_num=1, groups=2),
]


@pytest.mark.parametrize("arguments", CASES)
@pytest.mark.parametrize("temperature", [1, 4.5])
@pytest.mark.parametrize("training", [True, False])
def test_the_kernel_has_the_published_attention(
    arguments: dict, temperature: float, training: bool
) -> None:
    """All four attentions multiplied into the kernel, which is how the publication defines it."""
    layer = randomized(ODConv2d(8, 8, **arguments)).double().train(training)
    layer.set_temperature(temperature)
    image = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    attention = layer.attention
    hidden = attention.fc(image.mean((2, 3), keepdim=True))
    bn = attention.bn
    if training:
        hidden = F.batch_norm(hidden, None, None, bn.weight, bn.bias, training=True)
    else:
        hidden = bn(hidden)
    hidden = F.relu(hidden)

    def factor(name: str, squash: Callable[[Tensor], Tensor]) -> Tensor:
        head = getattr(attention, name)
        if head is None:
            return torch.ones(2, 1, dtype=torch.float64)
        return squash(head(hidden).flatten(1) / temperature)

    channel = factor("channel_fc", torch.sigmoid)
    filters = factor("filter_fc", torch.sigmoid)
    spatial = factor("spatial_fc", torch.sigmoid)
    shares = factor("kernel_fc", lambda logits: torch.softmax(logits, dim=1))
    output = layer(image)
    for index in range(2):
        kernel = torch.einsum("k,koihw->oihw", shares[index], layer.weight)
        kernel = kernel * filters[index][:, None, None, None]
        if spatial.shape[1] > 1:
            kernel = kernel * spatial[index].view(layer.kernel_size)
        depth = 8 // layer.groups
        of_group = channel[index].view(layer.groups, 1, depth, 1, 1)
        kernel = (kernel.unflatten(0, (layer.groups, -1)) * of_group).flatten(0, 1)
        expected = F.conv2d(
            image[index : index + 1],
            kernel,
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        assert_close(output[index : index + 1], expected, 10)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (dict(kernel_size=3), set()),
        (dict(kernel_size=3, groups=8), {"filter_fc"}),
        (dict(kernel_size=3, groups=4), set()),
        (dict(kernel_size=1), {"spatial_fc"}),
        (dict(kernel_size=(1, 3)), set()),
        (dict(kernel_size=3, kernel_num=1), {"kernel_fc"}),
        (dict(kernel_size=1, groups=8, kernel_num=1), {"filter_fc", "spatial_fc", "kernel_fc"}),
    ],
)
def test_a_head_without_a_choice_is_left_out(arguments: dict, missing: set[str]) -> None:
    layer = ODConv2d(8, 8, **arguments)
    heads = {"channel_fc", "filter_fc", "spatial_fc", "kernel_fc"}
    kept = {key.split(".")[1] for key in layer.state_dict() if "_fc." in key}
    assert kept == heads - missing


def test_a_depthwise_multiplier_keeps_the_filter_head() -> None:
    assert ODConv2d(8, 16, 3, groups=8).attention.filter_fc.out_channels == 16


@pytest.mark.parametrize(
    ("channels", "arguments", "width"),
    [(512, {}, 32), (64, {}, 16), (64, dict(reduction=0.5), 32), (8, dict(min_channels=4), 4)],
)
def test_the_attention_has_the_published_width(channels: int, arguments: dict, width: int) -> None:
    assert ODConv2d(channels, 8, 3, **arguments).attention.fc.out_channels == width


def test_a_batch_of_one_trains_by_the_running_statistics() -> None:
    layer = randomized(ODConv2d(8, 8, 3, padding=1))
    image = torch.randn(1, 8, 6, 6)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    output = layer.train()(image)
    torch.testing.assert_close(output, layer.eval()(image))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_larger_batch_trains_by_its_own_statistics() -> None:
    layer = randomized(ODConv2d(8, 8, 3, padding=1))
    mean = layer.attention.bn.running_mean.clone()
    image = torch.randn(2, 8, 6, 6)
    assert not torch.allclose(layer.train()(image), layer.eval()(image))
    assert not torch.equal(layer.attention.bn.running_mean, mean)


def test_a_norm_over_processes_gets_a_batch_of_one_as_it_is() -> None:
    layer = ODConv2d(8, 8, 3)
    calls = []
    layer.attention.bn = nn.Identity()
    layer.attention.bn.register_forward_hook(lambda *_: calls.append(1))
    layer.train()(torch.randn(1, 8, 6, 6))
    assert calls


def test_the_bias_is_added_after_all_attention() -> None:
    layer = randomized(ODConv2d(8, 6, 3)).eval()
    image = torch.randn(2, 8, 5, 5)
    before = layer(image)
    with torch.no_grad():
        layer.bias += torch.arange(6.0)
    torch.testing.assert_close(layer(image), before + torch.arange(6.0).view(6, 1, 1))
    assert ODConv2d(8, 6, 3, bias=False).bias is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(reduction=0), "reduction must be finite and above 0, got 0"),
        (dict(min_channels=0), "min_channels must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ODConv2d(8, 8, 3, **arguments)
