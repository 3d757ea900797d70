from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rednet.errors import ArgumentError
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


def _squeezed(layer: ODConv2d, image: Tensor) -> Tensor:
    """What the heads of all attentions read."""
    bn = layer.attention.bn
    hidden = layer.attention.fc(image.mean((2, 3), keepdim=True))
    if layer.training:
        return F.relu(F.batch_norm(hidden, None, None, bn.weight, bn.bias, training=True))
    return F.relu(bn(hidden))


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
    attention, hidden = layer.attention, _squeezed(layer, image)

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


SUBSETS = [
    subset
    for count in range(1, 5)
    for subset in itertools.combinations(("channel", "filter", "spatial", "kernel"), count)
]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("attentions", SUBSETS, ids="-".join)
def test_any_attentions_can_be_left_out(attentions: tuple[str, ...], static: bool) -> None:
    kernels = 3 if "kernel" in attentions else 1
    layer = ODConv2d(8, 6, 3, padding=1, kernel_num=kernels, attentions=attentions, static=static)
    heads = {name.split(".")[1] for name in layer.state_dict() if "_fc" in name}
    assert heads == {f"{name}_fc" for name in attentions}
    plain = nn.Conv2d(8, 6, 3, padding=1)
    layer.load_state_dict(plain.state_dict())
    image = torch.rand(3, 8, 9, 11)
    torch.testing.assert_close(layer.eval()(image), plain(image), rtol=1e-4, atol=1e-5)
    layer = randomized(layer).train()
    layer.set_temperature(3.0)
    layer(image).square().sum().backward()
    assert all(each.grad is not None for each in layer.parameters())


def test_filters_alone_are_squeeze_and_excitation() -> None:
    layer = randomized(ODConv2d(8, 6, 3, padding=1, kernel_num=1, attentions=["filter"])).eval()
    image, network = torch.rand(3, 8, 9, 11), layer.attention
    hidden = F.relu(network.bn(network.fc(image.mean((2, 3), keepdim=True))))
    gates = network.filter_fc(hidden).sigmoid()
    expected = F.conv2d(image, layer.weight[0], padding=1) * gates + layer.bias[:, None, None]
    torch.testing.assert_close(layer(image), expected, rtol=1e-4, atol=1e-5)


def test_static_attention_is_that_of_no_image() -> None:
    layer = randomized(ODConv2d(8, 6, 3, padding=1, kernel_num=2, static=True))
    image, heads = torch.rand(3, 8, 9, 11), layer.attention
    kernel = torch.einsum("koihw,k->oihw", layer.weight, heads.kernel_fc.logits.softmax(0))
    kernel = kernel * heads.spatial_fc.logits.sigmoid().view(3, 3)
    kernel = kernel * heads.channel_fc.logits.sigmoid().view(-1, 1, 1)
    kernel = kernel * heads.filter_fc.logits.sigmoid().view(-1, 1, 1, 1)
    expected = F.conv2d(image, kernel, layer.bias, padding=1)
    torch.testing.assert_close(layer(image), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in layer.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(attentions=()), "attentions must be one or more of"),
        (dict(attentions="filter"), "attentions must be one or more of .* got 'filter'"),
        (dict(attentions=["depth"]), r"attentions must be one or more of .* got \['depth'\]"),
        (dict(attentions=["filter"]), "kernel_num must be 1 without the attention 'kernel'.*got 4"),
    ],
)
def test_attentions_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ODConv2d(8, 6, 3, **arguments)
