from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rednet.ops.cpu import loader
from rednet.ops.expert_conv import mixing
from rednet.ops.expert_conv.mixing import mix, mix_gradients
from tests.ops.cases import BUILD_NAMES, BUILDS
from tests.tolerances import assert_close

# Samples, experts, numbers: whole blocks, blocks of every size and rests, several pieces.
SIZES = [(8, 8, 2048), (1, 1, 1), (3, 7, 37), (7, 3, 200), (2, 5, 4099)]

needs_builds = pytest.mark.skipif(not BUILDS, reason="rednet was installed without a C++ compiler")


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels serve tensors of any size."""
    monkeypatch.setattr(mixing, "_LEAST_WORK", 0)
    monkeypatch.setattr(mixing, "_LEAST_WORK_OF_KERNELS", {8: 0})


@pytest.fixture(params=BUILDS, ids=BUILD_NAMES)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instruction set in turn."""
    loaded = ctypes.CDLL(str(request.param))
    monkeypatch.setattr(loader, "load", lambda: loaded)


def _case(
    samples: int, experts: int, numbers: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Experts that lie apart, a routing that is a transposed matrix, a gradient of the kernels."""
    return (
        torch.randn(experts, numbers + 3, dtype=dtype)[:, :numbers],
        torch.randn(experts, samples, dtype=dtype).t(),
        torch.randn(samples, numbers, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", loader.DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_instruction_set_mixes(
    build: None, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    experts, routing, _ = _case(*size, dtype)
    kernels = mix(experts, routing)
    assert mixing._are_served(experts, routing)
    assert kernels.dtype == dtype
    assert_close(kernels, routing.double() @ experts.double())


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", loader.DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_instruction_set_finds_the_gradients(
    build: None, size: tuple[int, int, int], dtype: torch.dtype, adds: bool
) -> None:
    experts, routing, grad = _case(*size, dtype)
    before = torch.randn(experts.shape, dtype=dtype)
    out = before.clone() if adds else torch.full_like(before, torch.nan)
    grad_mixture = mix_gradients(grad, experts, routing, out, adds=adds)
    expected = routing.t().double() @ grad.double()
    assert_close(out, expected + before.double() if adds else expected)
    assert_close(grad_mixture, grad.double() @ experts.t().double())


@needs_builds
def test_derivatives() -> None:
    experts, routing, _ = _case(3, 5, 37, torch.float64)
    inputs = (experts.requires_grad_(), routing.requires_grad_())
    assert type(mix(*inputs).grad_fn).__name__ == "_MixBackward"
    assert torch.autograd.gradcheck(mix, inputs)
    assert torch.autograd.gradgradcheck(mix, inputs)


@pytest.mark.parametrize("learned", [0, 1])
def test_gradient_of_one_of_the_two(learned: int) -> None:
    experts, routing, grad = _case(3, 5, 37)
    inputs = (experts, routing)
    inputs[learned].requires_grad_()
    (actual,) = torch.autograd.grad(mix(*inputs), inputs[learned], grad)
    exact = (routing.t().double() @ grad.double(), grad.double() @ experts.t().double())
    assert_close(actual, exact[learned])


@needs_builds
def test_results_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    experts, routing, grad = _case(8, 8, 20_000)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out = torch.empty_like(experts)
        grad_mixture = mix_gradients(grad, experts, routing, out, adds=False)
        results.append((mix(experts, routing), out, grad_mixture))
    assert all(result.any() for result in results[0])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@needs_builds
def test_what_the_compiled_kernels_leave_to_pytorch() -> None:
    experts, routing, _ = _case(4, 4, 64)
    assert mixing._are_served(experts, routing)
    assert mixing._are_served(nn.Parameter(experts), routing)
    assert not mixing._are_served(experts.bfloat16(), routing.bfloat16())
    assert not mixing._are_served(experts, routing.double())
    assert not mixing._are_served(experts.to("meta"), routing.to("meta"))
    assert not mixing._are_served(experts.t().contiguous().t(), routing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mix(experts, routing).dtype == torch.bfloat16


@needs_builds
@pytest.mark.parametrize(
    ("samples", "numbers", "function"),
    [
        (1, 2**20, "_MixBackward"),
        (4, 2**17, "_MixBackward"),
        (4, 2**16, "MmBackward0"),  # little work
        (5, 2**18, "MmBackward0"),
        (8, 2**19, "_MixBackward"),
        (9, 2**20, "MmBackward0"),  # many kernels
    ],
)
def test_where_the_compiled_kernel_gains(
    samples: int, numbers: int, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    experts = torch.ones(4, 1).expand(4, numbers).contiguous().requires_grad_()
    assert type(mix(experts, torch.ones(samples, 4)).grad_fn).__name__ == function


def test_views_that_are_lazily_negated() -> None:
    experts, routing, grad = _case(3, 5, 37)
    expected = -(routing.double() @ experts.double())
    assert_close(mix(torch._neg_view(experts), routing), expected)
    assert_close(mix(experts, torch._neg_view(routing)), expected)
    out = torch.empty_like(experts)
    gradient = mix_gradients(torch._neg_view(grad), experts, routing, out, adds=False)
    assert_close(gradient, -(grad.double() @ experts.t().double()))


def test_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load", lambda: None)
    experts, routing, grad = _case(3, 5, 37)
    assert_close(mix(experts, routing), routing.double() @ experts.double())
    out = torch.empty_like(experts)
    assert_close(
        mix_gradients(grad, experts, routing, out, adds=False),
        grad.double() @ experts.t().double(),
    )
    assert_close(out, routing.t().double() @ grad.double())


def test_its_flops_are_counted() -> None:
    experts, routing, _ = _case(3, 5, 37)
    with FlopCounterMode(display=False) as counter:
        mix(experts, routing)
    assert counter.get_total_flops() == 2 * 3 * 5 * 37


def test_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        fake = mix(torch.empty(5, 37), torch.empty(3, 5))
    assert fake.shape == (3, 37)
    # Outside of the mode too.
    assert mix(mode.from_tensor(torch.empty(5, 37)), mode.from_tensor(torch.empty(3, 5))).shape == (
        3,
        37,
    )


def test_transforms() -> None:
    experts, routing, _ = _case(3, 5, 37)
    stacked = torch.stack([routing, 2 * routing])
    mapped = torch.func.vmap(mix, in_dims=(None, 0))(experts, stacked)
    assert_close(mapped, stacked.double() @ experts.double())
    grad = torch.func.grad(lambda shares: mix(experts, shares).sum())(routing)
    assert_close(grad, experts.double().sum(1).expand_as(routing))
    _, tangent = torch.func.jvp(lambda shares: mix(experts, shares), (routing,), (routing,))
    assert_close(tangent, routing.double() @ experts.double())
