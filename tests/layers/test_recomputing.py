"""Batch norm and ReLU in training, whose output the backward pass computes again."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from rednet.layers import Involution2d, recomputing
from rednet.layers.recomputing import consume, consume_module
from rednet.ops import tracing

pytestmark = pytest.mark.skipif(
    not tracing.may_hook_saved_tensors(), reason="this torch does not tell the hooks in use"
)


class _Net(nn.Module):
    def __init__(self, **norm: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.norm, self.relu = nn.BatchNorm2d(8, **norm), nn.ReLU()
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, image: Tensor) -> Tensor:
        return consume(self.norm, self.relu, self.first(image), self.last)

    def plain(self, image: Tensor) -> Tensor:
        return self.last(self.relu(self.norm(self.first(image))))


def _net(dtype: torch.dtype = torch.float64, **norm: Any) -> tuple[_Net, Tensor]:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 5, 6, dtype=dtype).to(memory_format=torch.channels_last)
    return _Net(**norm).to(dtype, memory_format=torch.channels_last), image


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of channels of the outputs that were computed again."""
    channels: list[int] = []
    compute = recomputing._normalized

    def recorded(input: Tensor, *rest: Tensor) -> Tensor:
        channels.append(input.shape[1])
        return compute(input, *rest)

    monkeypatch.setattr(recomputing, "_normalized", recorded)
    return channels


def _results(net: _Net, call: Callable, image: Tensor) -> list[Tensor]:
    image = image.clone().requires_grad_()
    output = call(image)
    gradients = torch.autograd.grad(output.square().sum(), (image, *net.parameters()))
    return [output.detach(), *gradients, *(each.clone() for each in net.buffers())]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("momentum", [0.1, 0.5])
def test_gradients_and_statistics_are_those_of_the_modules(
    used: list[int], layout: torch.memory_format, momentum: float
) -> None:
    net, image = _net(momentum=momentum)
    net, image = net.to(memory_format=layout), image.contiguous(memory_format=layout)
    plain = copy.deepcopy(net)
    expected = _results(plain, plain.plain, image)
    torch.testing.assert_close(_results(net, net, image), expected)
    assert set(used) == {8}


def test_gradients_have_gradients() -> None:
    net, image = _net()
    image.requires_grad_()
    parameters = tuple(net.parameters())
    assert torch.autograd.gradgradcheck(
        lambda image, *_: net(image), (image, *parameters), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast(dtype: torch.dtype) -> None:
    net, image = _net(torch.float32)
    plain = copy.deepcopy(net)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        actual, expected = _results(net, net, image), _results(plain, plain.plain, image)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def _kept(call: Callable, image: Tensor) -> int:
    """The bytes of all storages that are saved for the backward pass."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call(image)
    del output
    return sum(saved.values())


def test_the_output_is_not_kept() -> None:
    net, image = _net()
    # The norm's bias and the state of its statistics differ: 8 numbers instead of 16.
    difference = _kept(net.plain, image) - _kept(net, image)
    assert abs(difference - 8 * 2 * 8 * 5 * 6) <= 8 * 16


@pytest.mark.parametrize("counted", ["forward", "backward"])
def test_a_checkpoint_saves_the_same_whatever_counts_one_pass(counted: str) -> None:
    net, image = _net()
    layer = Involution2d(4, 16, 3, padding=1).double()
    flops = FlopCounterMode(display=False)
    with flops if counted == "forward" else nullcontext():
        output = checkpoint(nn.Sequential(net, layer), image, use_reentrant=False)
    with flops if counted == "backward" else nullcontext():
        output.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_a_checkpoint(reentrant: bool) -> None:
    net, image = _net(momentum=0.0)
    plain = copy.deepcopy(net)
    expected = _results(plain, plain.plain, image)

    def call(image: Tensor) -> Tensor:
        return checkpoint(net, image, use_reentrant=reentrant)

    image.requires_grad_()
    output = call(image)
    output.square().sum().backward()
    actual = [image.grad, *(each.grad for each in net.parameters())]
    torch.testing.assert_close(actual, expected[1 : len(actual) + 1])


def test_inside_a_checkpoint_nothing_is_kept() -> None:
    net, image = _net()
    kept: list[weakref.ref] = []

    def call(image: Tensor) -> Tensor:
        return consume(net.norm, net.relu, remembered(net.first(image)), net.last)

    def remembered(tensor: Tensor) -> Tensor:
        kept.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    output = checkpoint(call, image.requires_grad_(), use_reentrant=False)
    assert kept[0]() is None
    output.sum().backward()


def test_user_hooks_get_what_is_kept(used: list[int]) -> None:
    net, image = _net()
    plain = copy.deepcopy(net)
    expected = _results(plain, plain.plain, image)

    def call(image: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return net(image)

    torch.testing.assert_close(_results(net, call, image), expected)
    assert set(used) == {8}


def test_a_graph_serves_twice() -> None:
    net, image = _net()
    loss = net(image).square().sum()
    first = torch.autograd.grad(loss, tuple(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, tuple(net.parameters()))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize(
    "watched", ["norm hook", "activation", "eval", "FLOPs", "compiler", "torch.func", "no affine"]
)
def test_elsewhere_the_modules_are_called(used: list[int], watched: str) -> None:
    net, image = _net(torch.float32, affine=True)
    call: Callable = net
    if watched == "norm hook":
        net.norm.register_forward_hook(lambda *_: None)
    elif watched == "activation":
        net.relu = nn.ReLU6()
    elif watched == "eval":
        net.eval()
    elif watched == "compiler":
        call = torch.compile(net, backend="eager")
    elif watched == "torch.func":
        net.eval()
        call = torch.func.vmap(lambda each: net(each[None])[0])
    elif watched == "no affine":
        net.norm = nn.BatchNorm2d(8, affine=False)
    with FlopCounterMode(display=False) if watched == "FLOPs" else nullcontext():
        call(image).sum().backward()
    assert not used


def test_a_single_number_is_refused() -> None:
    net, _ = _net()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 3, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("tensor", ["weight", "bias", "running_mean", "running_var"])
def test_tensors_of_another_shape_are_refused(tensor: str) -> None:
    net, image = _net()
    getattr(net.norm, tensor).data = torch.ones(5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"{tensor} should contain 8 elements not 5"):
        net(image)


def test_what_the_consumer_overwrote_is_kept() -> None:
    net, image = _net()

    def overwriting(input: Tensor) -> Tensor:
        return input.mul_(2).square()

    doubled = consume(net.norm, net.relu, net.first(image), overwriting)
    expected = (2 * net.relu(net.norm(net.first(image)))).square()
    parameters = (net.first.weight, net.norm.weight)
    torch.testing.assert_close(
        torch.autograd.grad(doubled.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
    )


def test_norm_and_activation_of_a_module(used: list[int]) -> None:
    module = ConvModule(3, 8, 1, norm_cfg=dict(type="BN"), inplace=False)
    last, image = nn.Conv2d(8, 4, 1), torch.randn(2, 3, 4, 4)
    plain = copy.deepcopy(module)
    actual = consume_module(module, image, last)
    torch.testing.assert_close(actual, last(plain(image)))
    actual.sum().backward()
    assert set(used) == {8}


@pytest.mark.parametrize("statistic", ["num_batches_tracked", "running_mean", "weight", "bias"])
def test_norms_without(statistic: str) -> None:
    net, image = _net()
    setattr(net.norm, statistic, None)
    if statistic == "running_mean":
        net.norm.running_var = None
    plain = copy.deepcopy(net)
    torch.testing.assert_close(_results(net, net, image), _results(plain, plain.plain, image))


def test_gradients_of_gradients_where_a_norm_is_used_twice() -> None:
    norm, relu = nn.BatchNorm2d(3).double(), nn.ReLU()
    convolution, image = nn.Conv2d(3, 3, 1).double(), torch.randn(2, 3, 4, 4).double()

    def found(call: Callable) -> list[Tensor]:
        given = image.clone().requires_grad_()
        output = call(norm, relu, call(norm, relu, given * 1, convolution), convolution)
        parameters = (given, norm.weight, convolution.weight)
        first = torch.autograd.grad(output.square().sum(), parameters, create_graph=True)
        return [*first, *torch.autograd.grad(first[1].square().sum(), parameters)]

    plain = found(lambda norm, relu, input, consumer: consumer(relu(norm(input))))
    torch.testing.assert_close(found(consume), plain)


@pytest.mark.parametrize("changed", ["the consumer's weight", "the norm's input"])
def test_what_was_changed_in_place_is_an_error(changed: str) -> None:
    net, image = _net()
    normed = net.first(image)
    output = consume(net.norm, net.relu, normed, net.last).sum()
    with torch.no_grad():
        (normed if changed == "the norm's input" else net.last.weight).mul_(2)
    needed = net.last.weight if changed == "the norm's input" else net.first.weight
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output, needed)


def test_a_norms_parameters_may_change_before_the_backward_pass() -> None:
    net, image = _net()
    expected = _results(net, net.plain, image)
    output = net(image).square().sum()
    with torch.no_grad():
        net.norm.bias.add_(1)
    bias, weight = torch.autograd.grad(output, (net.norm.bias, net.last.weight), retain_graph=True)
    torch.testing.assert_close([bias, weight], [expected[5], expected[6]])
    with torch.no_grad():
        net.norm.weight.add_(1)
    torch.testing.assert_close(torch.autograd.grad(output, net.last.weight)[0], weight)


def test_a_consumer_of_somebody_else_may_forbid_hooks() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            square = torch.func.grad(lambda scale: (scale * input.detach()).square().sum())
            return super().forward(input) * square(torch.ones((), dtype=input.dtype))

    net, image = _net()
    net.last = Scaled(8, 4, 1).double()
    plain = copy.deepcopy(net)
    torch.testing.assert_close(_results(net, net, image), _results(plain, plain.plain, image))
