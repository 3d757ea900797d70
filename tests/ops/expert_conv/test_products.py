from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.cpu import expert_conv as compiled
from rednet.ops.cpu import loader
from rednet.ops.expert_conv import Factors, Window, expert_conv2d, products, tiled
from tests.ops.cases import BUILD_NAMES, BUILDS
from tests.tolerances import assert_close

# Filters, channels, side: whole blocks and rests of filters, of depth and of pixels.
SIZES = [(64, 32, 8), (130, 7, 5), (3, 60, 9), (1, 1, 1)]
WINDOW = Window(padding=(1, 1))

needs_builds = pytest.mark.skipif(not BUILDS, reason="rednet was installed without a C++ compiler")


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernel serves tensors of any size."""
    monkeypatch.setattr(products, "_LEAST_RATIO", 0)
    monkeypatch.setattr(products, "_LEAST_FILTERS_PER_PIXEL", 0)


compute = products.gradients_by_products


def _case(
    filters: int, channels: int, side: int, dtype: torch.dtype = torch.float64, samples: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(samples, channels, side, side, dtype=dtype),
        torch.randn(4, filters, channels, 3, 3, dtype=dtype),
        torch.randn(samples, 4, dtype=dtype),
    )


def _reference(
    input: Tensor, experts: Tensor, routing: Tensor, window: Window, scale: Tensor | float = 1
) -> Tensor:
    kernels = torch.einsum("nk,kocij->nocij", routing.double(), experts.double()) * scale
    images = zip(input.double(), kernels, strict=True)
    return torch.cat([F.conv2d(image[None], kernel, None, *window) for image, kernel in images])


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_instruction_set(
    monkeypatch: pytest.MonkeyPatch, build: object, size: tuple, dtype: torch.dtype
) -> None:
    loaded = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: loaded)
    case = _case(*size, dtype, samples=11)
    assert products.gains_by_products(*case, None, None, WINDOW)
    output = products.convolve_by_products(*case, None, None, WINDOW)
    assert_close(output, _reference(*case, WINDOW))


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("most_bytes", [2**24, 2**17], ids=str)
@pytest.mark.parametrize(
    ("size", "window"),
    [((72, 64, 7), WINDOW), ((8, 16, 9), Window((2, 1), (1, 0), (1, 2))), ((16, 16, 2), WINDOW)],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_instruction_set_finds_the_gradients(
    monkeypatch: pytest.MonkeyPatch,
    build: object,
    size: tuple,
    window: Window,
    dtype: torch.dtype,
    most_bytes: int,
    layout: torch.memory_format,
) -> None:
    loaded = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: loaded)
    monkeypatch.setattr(compiled, "_MOST_BYTES", most_bytes)
    input, experts, routing = _case(*size, dtype, samples=11)
    scale = torch.randn(11, 1, 1, 3, 3, dtype=dtype)
    case = [input.to(memory_format=layout), experts, routing, scale]
    learned = [each.double().requires_grad_() for each in case]
    output = _reference(*learned[:3], window, learned[3])
    grad = torch.randn_like(output).to(dtype)
    expected = torch.autograd.grad(output, learned, grad.double())
    assert products.gradients_gain_by_products(grad, *case, window)
    found = products.gradients_by_products(grad, *case, window)
    for actual, reference in zip(found, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, reference)
    assert found[0].stride() == case[0].stride()


@pytest.mark.parametrize("build", BUILDS, ids=BUILD_NAMES)
def test_results_do_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, threads: None, build: object
) -> None:
    loaded = ctypes.CDLL(str(build))
    monkeypatch.setattr(loader, "load", lambda: loaded)
    input, experts, routing = _case(72, 48, 5, torch.float32, samples=9)
    scale, grad = torch.randn(9, 1, 1, 3, 3), torch.randn(9, 72, 5, 5)
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        output = products.convolve_by_products(input, experts, routing, scale, None, WINDOW)
        results.append((output, *compute(grad, input, experts, routing, scale, WINDOW)))
    assert all(result.any() for result in results[0])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@needs_builds
def test_a_layers_gradients_are_those_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(16, 16, 5)
    bias = torch.randn(3, 16).double()
    for each in (*case, bias):
        each.requires_grad_()
    output = expert_conv2d(*case, bias, window=WINDOW)
    expected = _reference(*case, WINDOW) + bias[:, :, None, None]
    grad = torch.randn_like(expected)
    called = []
    monkeypatch.setattr(
        tiled,
        "gradients_by_products",
        lambda *args, **keywords: called.append(1) or compute(*args, **keywords),
    )
    found = torch.autograd.grad(output, [*case, bias], grad)
    for actual, reference in zip(
        found, torch.autograd.grad(expected, [*case, bias], grad), strict=True
    ):
        assert_close(actual, reference)
    assert called == [1]


@needs_builds
def test_samples_whose_columns_are_many_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    input, experts, routing = _case(*SIZES[1])
    monkeypatch.setattr(compiled, "_MOST_BYTES", 2 * experts[0, 0].numel() * 25 * 8)
    bias, taps = torch.randn(3, 130).double(), torch.randn(3, 9).double()
    output = expert_conv2d(input, experts, routing, bias, Factors(taps=taps), WINDOW)
    for n in range(3):
        own = (experts * taps[n].view(3, 3), routing[n : n + 1], WINDOW)
        assert_close(output[n] - bias[n, :, None, None], _reference(input[n : n + 1], *own)[0])


@needs_builds
@pytest.mark.parametrize(("channels", "side"), [(48, 1), (1, 48)])
def test_factors_may_be_of_any_strides(channels: int, side: int) -> None:
    """Where kernels have one channel or one element, the expanded factors need no copy."""
    case = [
        torch.randn(3, channels, 1, 6).double().requires_grad_(),
        torch.randn(2, 8, channels, 1, side).double().requires_grad_(),
        torch.randn(3, 2).double().requires_grad_(),
    ]
    window = Window(padding=(1, 24))
    taps = torch.randn(3, side + 1).double()[:, 1:].requires_grad_()
    assert not taps.is_contiguous()
    output = expert_conv2d(*case, None, Factors(taps=taps), window)
    expected = _reference(*case, window, taps.view(3, 1, 1, 1, side))
    assert_close(output, expected)
    learned, grad = [*case, taps], torch.randn_like(expected)
    found = torch.autograd.grad(output, learned, grad)
    references = torch.autograd.grad(expected, learned, grad)
    for actual, reference in zip(found, references, strict=True):
        assert_close(actual, reference)


@needs_builds
@pytest.mark.parametrize(
    "changed",
    [
        dict(window=Window(groups=2)),
        dict(experts=torch.randn(4, 130, 7, 1, 1).double(), window=Window()),
        dict(experts=torch.randn(4, 130, 7, 3, 3)),
        dict(experts=torch.randn(4, 130, 7, 3, 3).double().to_sparse()),
        dict(experts=torch.randn(4, 130, 3, 3, 7).double().movedim(4, 2)),
        dict(scale=torch.randn(3, 130, 1, 3, 3).double()),
    ],
    ids=lambda changed: ",".join(changed),
)
def test_others_are_not_served(changed: dict) -> None:
    input, experts, routing = _case(*SIZES[1])
    arguments = dict(experts=experts, scale=None, window=WINDOW)
    served = dict(input=input, routing=routing, bias=None)
    assert products.gains_by_products(**served, **arguments)
    assert not products.gains_by_products(**served, **(arguments | changed))


@needs_builds
def test_kernels_as_small_as_their_images_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not products.gains_by_products(*_case(8, 8, 8), None, None, WINDOW)
    assert products.gains_by_products(*_case(64, 8, 3), None, None, WINDOW)


@needs_builds
def test_large_kernels_with_few_filters_for_their_columns_are_not_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    input, _, routing = _case(1, 2, 4)
    for filters, gains in ((31, False), (32, True)):
        experts = torch.randn(4, filters, 2, 7, 7).double()
        window = Window(padding=(3, 3))
        assert products.gains_by_products(input, experts, routing, None, None, window) == gains
