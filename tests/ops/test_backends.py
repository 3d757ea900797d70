from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rednet import ops
from rednet.ops import backends
from rednet.ops.backends import Backend, Problem, select_backend
from rednet.ops.geometry import Geometry

SMALL = Geometry((1, 1), (1, 1), (0, 0), (1, 1))


def _problem(dtype: torch.dtype) -> Problem:
    return Problem("forward", torch.device("cpu"), dtype, 1, 2, 1, (3, 3), (3, 3), SMALL)


def _fill_with(value: float) -> Backend:
    def kernel(first, second, output, geometry) -> None:
        output.fill_(value)

    return Backend("constant", kernel, kernel, kernel, lambda problem: None)


@pytest.fixture
def constant_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_BACKENDS", dict(backends._BACKENDS))
    backends.register_backend(_fill_with(5.0))


@pytest.fixture
def picky_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*_: object) -> None:
        raise AssertionError("must not run")

    def unsupported_reason(problem: Problem) -> str | None:
        return None if problem.dtype == torch.float64 else "it is float64 only"

    picky = Backend("picky", kernel, kernel, kernel, unsupported_reason)
    monkeypatch.setattr(backends, "_BACKENDS", {"picky": picky, **backends._BACKENDS})


def _ones() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1, 2, 3, 3), torch.ones(1, 1, 1, 1, 3, 3)


def test_the_first_eligible_backend_is_chosen(picky_backend: None) -> None:
    assert select_backend(_problem(torch.float64)).name == "picky"
    assert select_backend(_problem(torch.float32)).name != "picky"


def test_the_default_is_not_the_slow_reference() -> None:
    assert select_backend(_problem(torch.float32)).name != "reference"


def test_the_context_forces_a_backend_and_ends(constant_backend: None) -> None:
    with ops.backend("constant"):
        with ops.backend("reference"):
            assert (ops.involution2d(*_ones()) == 1).all()
        assert (ops.involution2d(*_ones()) == 5).all()
    assert (ops.involution2d(*_ones()) == 1).all()


def test_the_context_forces_the_gradients_too(constant_backend: None) -> None:
    input, weight = (tensor.requires_grad_() for tensor in _ones())
    with ops.backend("constant"):
        ops.involution2d(input, weight).sum().backward()
    assert (input.grad == 5).all() and (weight.grad == 5).all()


def test_the_environment_variable_forces_a_backend(
    constant_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDNET_BACKEND", "constant")
    assert (ops.involution2d(*_ones()) == 5).all()
    with ops.backend("reference"):
        assert (ops.involution2d(*_ones()) == 1).all()


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match="name must be one of .*'reference'.*, got 'fast'"),
        ops.backend("fast"),
    ):
        pass
    monkeypatch.setenv("REDNET_BACKEND", "faster")
    with pytest.raises(ValueError, match="REDNET_BACKEND must be one of .*, got 'faster'"):
        ops.involution2d(*_ones())


def test_a_forced_backend_that_cannot_serve_says_why(picky_backend: None) -> None:
    with ops.backend("picky"), pytest.raises(RuntimeError, match="float32 on cpu: it is float64"):
        ops.involution2d(*_ones())


def test_a_reason_for_one_gradient_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported_reason(problem: Problem) -> str | None:
        is_wide = problem.geometry.kernel_size[1] > 9 and problem.operation == "grad_weight"
        return "the kernel is too wide" if is_wide else None

    reference = backends._BACKENDS["reference"]
    narrow = replace(reference, name="narrow", unsupported_reason=unsupported_reason)
    monkeypatch.setattr(backends, "_BACKENDS", {"narrow": narrow, **backends._BACKENDS})
    assert ops.explain_backends()["narrow"] is None
    reason = ops.explain_backends(kernel_size=(3, 11), padding=(1, 5))["narrow"]
    assert reason == "grad_weight: the kernel is too wide"


def test_what_is_there_on_request_is_used_only_if_forced(
    constant_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = replace(_fill_with(7.0), name="asked for", on_request=True)
    monkeypatch.setattr(backends, "_BACKENDS", {"asked for": asked_for, **backends._BACKENDS})
    assert ops.explain_backends()["asked for"] is None
    assert (ops.involution2d(*_ones()) == 1).all()
    with ops.backend("asked for"):
        assert (ops.involution2d(*_ones()) == 7).all()


def test_explain_backends_gives_reasons(picky_backend: None) -> None:
    reasons = ops.explain_backends("cpu", torch.float32)
    assert reasons["picky"] == "it is float64 only"
    assert reasons["reference"] is None


def test_explain_backends_checks_the_sizes() -> None:
    assert ops.explain_backends("cpu", torch.float32, padding=0)["reference"] is None
    for name, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        with pytest.raises(ValueError, match=f"{name} must be .*at least {least}"):
            ops.explain_backends("cpu", torch.float32, **{name: least - 1})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_backend_serves_a_dtype_that_the_operator_refuses(device: str) -> None:
    reasons = ops.explain_backends(device, torch.int64)
    assert set(reasons) == {"cuda", "triton", "cpu", "shifted", "reference", "triton-fused"}
    assert all("torch.bfloat16" in str(reason) for reason in reasons.values())


def test_a_name_is_registered_once(constant_backend: None) -> None:
    with pytest.raises(ValueError, match="'constant' is registered already"):
        backends.register_backend(_fill_with(1.0))
