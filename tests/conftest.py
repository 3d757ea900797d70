"""What every test shares: seeding, threads, the ``gpu`` marker and the golden vectors."""

from __future__ import annotations

import ast
import functools
import gc
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import utils as config_utils
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"

# Small tensors gain nothing from many threads, and a many-core machine would lose time on them.
torch.set_num_threads(min(4, torch.get_num_threads()))

# A config with a base such as mmpretrain::... has mmengine read all metafiles of that library, each
# time again: most of the time that reading a config takes.
config_utils.load = functools.cache(config_utils.load)


# Files that take 15 seconds and more. A process that got one of them last would work alone.
LONG_FILES = (
    "test_dist_train.py",
    "test_cuda.py",
    "test_train.py",
    "test_stock_models.py",
    "test_bad_input.py",
    "test_readmes.py",
    "test_triton.py",
    "test_variants.py",
    "test_cuda_compile.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, and skip the tests marked ``gpu`` where there is no CUDA device."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what all imports have made.

    It is a million objects, which mmengine's data sets would have it search whenever one is built.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed Python, NumPy and torch before each test, so that no test depends on its neighbors."""
    value = 0
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return value


def _keep_process() -> Iterator[None]:
    """Restore what a model, a runner or a training that fails leaves in the process.

    That is mmengine's default scope, its visualizers (a hook draws by the one that was named last,
    whoever's it is) and the signal handlers.
    """
    instances = {each: each._instance_dict.copy() for each in _managers()}
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each in _managers():
        each._instance_dict = instances.get(each, {})
    for each, handler in handlers.items():
        signal.signal(each, handler)


def _managers() -> Iterator[Any]:
    """The classes of which mmengine keeps instances by name; OpenMMLab's libraries have some."""
    yield DefaultScope
    classes = [Visualizer]
    for each in classes:
        yield each
        classes.extend(each.__subclasses__())


# The first is for the fixtures of a module, which outlive its tests.
_of_modules = pytest.fixture(autouse=True, scope="module")(_keep_process)
_of_tests = pytest.fixture(autouse=True)(_keep_process)


def assert_float32_close(actual: Tensor, expected: Tensor, what: str, rtol: float) -> None:
    """Compare two tensors to ``rtol`` of the largest expected magnitude.

    Rounding in another order of summation spoils the small elements of a sum of many products, so
    the bound is relative to the tensor, not to each element.
    """
    assert actual.shape == expected.shape, f"{what}: {actual.shape} for {expected.shape}"
    scale = expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= rtol * scale, f"{what}: off by {error:.3g}, largest expected value {scale:.3g}"


@dataclass(frozen=True)
class Golden:
    """One golden vector: a reference layer's arguments, weights, input, outputs and gradients.

    Attributes:
        meta: the reference's constructor arguments and ``train``.
        state: its state_dict, with the published key names.
        x: its input.
        outputs: its outputs.
        cotangents: one per output; the gradients are those of ``sum(<output, cotangent>)``.
        grad_x: gradient of the input.
        grads: gradients of the parameters, without those of over 20,000 elements.
        deploy: the fused convolution of a layer that can be fused, else empty.
    """

    meta: dict[str, Any]
    state: dict[str, Tensor]
    x: Tensor
    outputs: list[Tensor]
    cotangents: list[Tensor]
    grad_x: Tensor
    grads: dict[str, Tensor]
    deploy: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read an ``.npz`` file; no pickled object is accepted."""
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, np.ndarray] = dict(file)
        meta = ast.literal_eval(str(arrays.pop("meta")))
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
        return cls(
            meta=meta,
            state=_under(tensors, "state/"),
            x=tensors["x"],
            outputs=_in_order(_under(tensors, "y/")),
            cotangents=_in_order(_under(tensors, "cot/")),
            grad_x=tensors["grad_x"],
            grads=_under(tensors, "grad/"),
            deploy=_under(tensors, "deploy/"),
        )

    def check(self, module: nn.Module, rtol: float = 1e-5) -> list[str]:
        """Load the weights strictly and compare all outputs and gradients.

        Args:
            module: the layer or backbone, built with the arguments that ``meta`` names.
            rtol: largest error allowed, as a share of each tensor's largest magnitude.

        Returns:
            The names of the tensors that were compared.
        """
        module.load_state_dict(self.state, strict=True)
        module.train(self.meta["train"])
        x = self.x.clone().requires_grad_()
        result = module(x)
        outputs = [result] if isinstance(result, Tensor) else list(result)
        assert len(outputs) == len(self.outputs), "number of outputs"
        torch.autograd.backward(outputs, self.cotangents)

        parameters = dict(module.named_parameters())
        actual = {f"y/{i}": output for i, output in enumerate(outputs)}
        actual["grad_x"] = x.grad
        actual |= {f"grad/{key}": parameters[key].grad for key in self.grads}
        expected = {f"y/{i}": output for i, output in enumerate(self.outputs)}
        expected |= {"grad_x": self.grad_x}
        expected |= {f"grad/{key}": grad for key, grad in self.grads.items()}
        for what, value in actual.items():
            assert value is not None, f"{what}: no gradient arrived"
            assert_float32_close(value, expected[what], what, rtol)
        return list(actual)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _in_order(numbered: Mapping[str, Tensor]) -> list[Tensor]:
    return [numbered[key] for key in sorted(numbered, key=int)]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Return ``golden(name)``, which loads ``tests/golden/<name>.npz``."""
    return lambda name: Golden.load(GOLDEN / f"{name}.npz")
