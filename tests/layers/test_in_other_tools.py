"""What other people's tools do to every layer: trace it, hook it, prune it, change its norms."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_full_backward_hook
from torch.nn.utils import parametrizations, prune

from rednet.layers.base import registered_layers
from rednet.models import RedNet, swap_conv
from tests.layers.cases import build

LAYERS = sorted(registered_layers())
every_layer = pytest.mark.parametrize("name", LAYERS)


def image(batch: int = 2, side: int = 12) -> Tensor:
    return torch.randn(batch, 16, side, side)


def layer_of(name: str, **options: object) -> nn.Module:
    return build(name, 16, 16, 3, padding=1, **options)


def randomized(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def children(layer: nn.Module, *types: type[nn.Module]) -> dict[str, nn.Module]:
    return {path: each for path, each in layer.named_modules() if isinstance(each, types)}


# ---- torch.fx


@every_layer
def test_a_layer_is_one_node_of_a_traced_graph(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 1), randomized(layer_of(name)), nn.ReLU()).eval()
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "0",
        "1",
        "2",
    ]
    for side in (12, 15):
        given = image(side=side)
        assert torch.equal(traced(given), model(given))


@every_layer
def test_a_layer_is_traced_by_itself(name: str) -> None:
    layer, given = randomized(layer_of(name)).eval(), image()
    traced = fx.symbolic_trace(layer)
    traced.graph.lint()
    assert torch.equal(traced(given), layer(given))
    assert list(traced.parameters()) and set(traced.parameters()) == set(layer.parameters())
    for copied in (copy.deepcopy(traced), fx.symbolic_trace(traced)):
        assert torch.equal(copied(given), layer(given))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_rednet_is_traced(format: torch.memory_format) -> None:
    model = RedNet(26, stem_channels=32, base_channels=16, out_indices=(0, 3)).eval()
    traced = fx.symbolic_trace(model)
    for size in ((33, 47), (64, 64)):
        given = torch.randn(1, 3, *size).to(memory_format=format)
        for actual, expected in zip(traced(given), model(given), strict=True):
            assert torch.equal(actual, expected)
            assert actual.stride() == expected.stride()


@pytest.mark.parametrize("training", [True, False])
def test_rednet_is_one_compiled_graph(training: bool) -> None:
    """In torch 2.1 too, which cannot compile much of Python."""
    model = RedNet(26, base_channels=16, stem_channels=32).train(training)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    images = torch.randn(4, 3, 64, 64)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(compiled(images), model(images), rtol=0.01, atol=0.01)


def test_features_of_a_swapped_torchvision_model() -> None:
    models = pytest.importorskip("torchvision.models")
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = swap_conv(models.resnet18(), dict(type="ODConv2d"), include=r"layer1\.0\.conv1$")
    extractor = extraction.create_feature_extractor(model.eval(), ["layer1.0.conv1", "layer2"])
    features = extractor(torch.randn(1, 3, 64, 64))
    assert features["layer1.0.conv1"].shape == (1, 64, 16, 16)


# ---- hooks and changed weights


@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_hooks_of_all_children_fire(name: str, training: bool) -> None:
    layer = layer_of(name).train(training)
    kinds = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
    called = dict.fromkeys(children(layer, *kinds), 0)

    def count(path: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            called[path] += 1

        return hook

    for path, child in children(layer, *kinds).items():
        child.register_forward_hook(count(path))
    layer(image(side=20))
    assert [path for path, calls in called.items() if not calls] == []


@every_layer
def test_hooks_that_only_look_change_nothing(name: str) -> None:
    layer, given = randomized(layer_of(name)).eval(), image()
    expected = layer(given)
    for child in children(layer, nn.Conv2d, nn.Linear).values():
        child.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(layer(given), expected, rtol=1e-4, atol=1e-4)


@every_layer
def test_full_backward_hooks_on_all_norms_and_convolutions(name: str) -> None:
    layer = layer_of(name).train()
    kinds = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    inside = children(layer, *kinds)
    seen = []
    for child in inside.values():
        child.register_full_backward_hook(lambda *_: seen.append(1))
    layer(image().requires_grad_()).sum().backward()
    assert len(seen) == len(inside)


HOOKED = {
    **{name: partial(layer_of, name) for name in LAYERS},
    "RedNet": partial(RedNet, 26, in_channels=16, stem_channels=32, base_channels=16),
    "RedNet, GN": partial(
        RedNet,
        26,
        in_channels=16,
        stem_channels=32,
        base_channels=16,
        norm_cfg=dict(type="GN", num_groups=1),
        drop_path_rate=0.1,
        with_cp=True,
    ),
}


@pytest.mark.parametrize("make", HOOKED.values(), ids=HOOKED)
@pytest.mark.parametrize("everywhere", [False, True], ids=["each module", "all modules"])
def test_full_backward_hooks_on_every_module(
    make: Callable[[], nn.Module], everywhere: bool
) -> None:
    model, seen = make().train(), []

    def hook(module: nn.Module, *_: object) -> None:
        seen.append(module)

    register = [module.register_full_backward_hook for module in model.modules()]
    if everywhere:
        register = [register_module_full_backward_hook]
    handles = [each(hook) for each in register]
    try:
        output = model(image(side=32).requires_grad_())
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    assert seen


# ---- quantization


def _scalar(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return (output[0] if isinstance(output, tuple) else output).square().mean()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*LAYERS, "RedNet"])
@pytest.mark.parametrize("aware", [False, True], ids=["after training", "aware training"])
def test_quantization_in_the_graph(name: str, aware: bool) -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    if name == "RedNet":
        model = RedNet(26, in_channels=16, stem_channels=32, base_channels=16)
    else:
        model = nn.Sequential(nn.Conv2d(16, 16, 1), layer_of(name), nn.BatchNorm2d(16), nn.ReLU())
    given = image(side=32)
    if aware:
        mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
        prepared = quantize_fx.prepare_qat_fx(model.train(), mapping, (given,))
        _scalar(prepared(given)).backward()
        assert all(each.grad.isfinite().all() for each in prepared.parameters())
    else:
        mapping = quantization.get_default_qconfig_mapping("fbgemm")
        prepared = quantize_fx.prepare_fx(model.eval(), mapping, (given,))
        prepared(given)
    converted = quantize_fx.convert_fx(prepared.eval())
    assert _scalar(converted(given)).isfinite()


@every_layer
@pytest.mark.parametrize(
    "change",
    [
        lambda child: prune.l1_unstructured(child, "weight", amount=0.5),
        lambda child: nn.utils.weight_norm(child),
        lambda child: parametrizations.weight_norm(child),
    ],
    ids=["pruning", "old weight norm", "weight norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:UserWarning")
def test_children_with_computed_weights_train(
    name: str, change: Callable[[nn.Module], nn.Module]
) -> None:
    layer = layer_of(name).train()
    for child in children(layer, nn.Conv2d).values():
        change(child)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(image()).square().mean().backward()
        optimizer.step()


@every_layer
def test_a_wrapped_child_is_called(name: str) -> None:
    """As LoRA wraps convolutions: another module with the convolution in it."""

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            return 2 * self.inner(input)

    layer = randomized(layer_of(name)).eval()
    given = image()
    before = layer(given)
    wrappers = []
    for parent in list(layer.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                wrappers.append(Wrapper(child))
                setattr(parent, child_name, wrappers[-1])
    if wrappers:
        assert not torch.allclose(layer(given), before)
        assert all(wrapper.calls for wrapper in wrappers)
    assert layer(given).shape == before.shape


# ---- norms


def _frozen(norm: nn.BatchNorm2d) -> nn.Module:
    misc = pytest.importorskip("torchvision.ops.misc")
    frozen = misc.FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen


def _replace_norms(layer: nn.Module, make: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, make(child))


NORMS = {
    "group": lambda norm: nn.GroupNorm(2, norm.num_features),
    "identity": lambda norm: nn.Identity(),
    "frozen": _frozen,
}


@every_layer
@pytest.mark.parametrize("norm", NORMS)
def test_another_norm_in_place_of_a_layers_own(name: str, norm: str) -> None:
    layer = layer_of(name)
    _replace_norms(layer, NORMS[norm])
    for training in (True, False):
        output = layer.train(training)(image(side=40))
        assert output.isfinite().all()
        output.sum().backward()


@every_layer
def test_synchronized_norms_and_back(name: str) -> None:
    layer = randomized(layer_of(name)).eval()
    given = image()
    expected = layer(given)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer)).eval()
    reverted = revert_sync_batchnorm(copy.deepcopy(converted))
    torch.testing.assert_close(reverted(given), expected)
    for one in (reverted, layer):
        one.train()(image(batch=1))  # a single image
        one.eval()(given)


@every_layer
def test_a_deployed_layer_with_frozen_norms(name: str) -> None:
    layer = randomized(layer_of(name)).eval()
    _replace_norms(layer, _frozen)
    given = image()
    expected = layer(given)
    torch.testing.assert_close(layer.switch_to_deploy().eval()(given), expected, atol=1e-4, rtol=0)


# ---- export


@every_layer
@pytest.mark.parametrize("opset", [11, 14, 20])
@pytest.mark.filterwarnings("ignore")
def test_old_opsets(name: str, opset: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, file, given = randomized(layer_of(name)).eval(), io.BytesIO(), image()
    exporter = {"dynamo": False} if torch.__version__ >= "2.5" else {}
    torch.onnx.export(layer, (given,), file, opset_version=opset, input_names=["x"], **exporter)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": given.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), layer(given), rtol=1e-4, atol=1e-4)
