"""The dtype that autocast asks for, with the functions of newer and older versions of PyTorch."""

from __future__ import annotations

import pytest
import torch

from rednet.ops import autocast

HAS_BOTH = hasattr(torch, "get_autocast_dtype") and hasattr(torch, "get_autocast_cpu_dtype")


@pytest.fixture(params=[False, True], ids=["older", "newer"])
def device_agnostic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param != hasattr(torch, "get_autocast_dtype") and not HAS_BOTH:
        pytest.skip("this PyTorch has the other functions only")
    monkeypatch.setattr(autocast, "_DEVICE_AGNOSTIC", request.param)
    return request.param


@pytest.mark.filterwarnings("ignore:torch.*autocast_cpu:DeprecationWarning")
def test_the_cpus_dtype(device_agnostic: bool) -> None:
    assert autocast.autocast_dtype("cpu") is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast.autocast_dtype("cpu") == torch.bfloat16
        assert autocast.autocast_dtype("meta") is None
    with torch.autocast("cpu", enabled=False):
        assert autocast.autocast_dtype("cpu") is None


@pytest.mark.skipif(not hasattr(torch, "get_autocast_dtype"), reason="torch < 2.4")
def test_other_accelerators_than_cuda() -> None:
    before = torch.get_autocast_dtype("xpu")
    torch.set_autocast_enabled("xpu", True)
    torch.set_autocast_dtype("xpu", torch.bfloat16)
    try:
        assert autocast.autocast_dtype("xpu") == torch.bfloat16
    finally:
        torch.set_autocast_enabled("xpu", False)
        torch.set_autocast_dtype("xpu", before)
