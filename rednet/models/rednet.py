"""RedNet: ResNet with involution in place of its 3 x 3 convolutions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule, constant_init
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rednet.layers.base import is_unmodified
from rednet.layers.finishing import finish, finish_module, is_plain_module, may_finish
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.layers.involution import GROUP_CHANNELS, REDUCTION_RATIO, Involution2d
from rednet.layers.recomputing import consume, consume_module
from rednet.models.argument_checks import (
    OptionalConfig,
    check_involution_cfg,
    check_kernel_sizes,
    check_layer_cfgs,
    check_multiple,
    check_norm,
    check_one_of,
    check_probability,
    check_stages,
)
from rednet.models.bottleneck import EXPANSION, Bottleneck
from rednet.models.init_cfg import as_list, is_pretrained, loads_checkpoint
from rednet.models.widen_stem import widen_stem_kernel
from rednet.ops.tracing import is_exporting, is_recorded
from rednet.registry import MODELS

STAGE_BLOCKS = {
    26: (1, 2, 4, 1),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

_FROM_SCRATCH = (
    "RedNet STARTS FROM SCRATCH: no checkpoint was given. Its weights are random, so no stage is "
    "frozen and all norms are trained, whatever frozen_stages and norm_eval say. To start from an "
    "ImageNet checkpoint: --cfg-options model.backbone.init_cfg.checkpoint=FILE"
)


@MODELS.register_module()
class RedNet(BaseModule):
    """RedNet backbone.

    From `Involution: Inverting the Inherence of Convolution for Visual Recognition
    <https://arxiv.org/abs/2103.06255>`_. The state_dict has the published keys.

    Args:
        depth: 26, 38, 50, 101 or 152.
        in_channels: Channels of the image.
        stem_channels: Channels of the stem's output; its involution has half as many.
        base_channels: Channels of the first stage's involutions; each later stage doubles them.
        stem_kernel_size: Kernel size of the stem's involution: 3 in the published classification
            checkpoints, 7 in the detection and segmentation ones.
        num_stages: Stages to build, 1 to 4.
        strides: Stride of the first block of each stage.
        dilations: Dilation of the involutions of each stage.
        out_indices: Stages whose outputs are returned.
        style: ``'pytorch'`` strides in the involution, ``'caffe'`` in the 1 x 1 before it.
        avg_down: Whether shortcuts stride by average pooling.
        frozen_stages: Number of stages to freeze together with the stem; 0 freezes only the stem,
            -1 nothing.
        conv_cfg: Config of the convolutions (not of the involutions).
        norm_cfg: Config of all norms, including those inside the involutions.
        norm_eval: Whether batch norms keep their running statistics while training.
        with_cp: Whether blocks are recomputed in the backward pass to save memory.
        zero_init_residual: Whether the last norm of every block starts at zero.
        init_cfg: Initialization config. With ``dict(type='Pretrained', checkpoint=None)`` the
            backbone starts from scratch: :meth:`init_weights` warns, and ``frozen_stages`` and
            ``norm_eval`` have no effect. If a checkpoint's stem involution has a smaller kernel, it
            is placed in the center of this one's, which then computes the same.
        kernel_size: Kernel size of the involutions in the stages.
        involution_cfg: Other arguments of the involutions in the stages, such as
            ``dict(group_channels=4, reduction_ratio=2)``.
        drop_path_rate: Probability that an image skips the residual branch of a block in training
            (stochastic depth).

    Differences from the published code: ``dilations`` dilate the involutions, where they had no
    effect; ``norm_cfg`` reaches the norms inside the involutions, which were batch norms always.
    With their defaults, both give the published network.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: a tuple of maps, stage i at 1 / 2**(i + 2) of the input's size, rounded up, with
          ``4 * base_channels * 2**i`` channels, in the input's memory format (NCHW or
          channels_last).

    Raises:
        ArgumentError: If an argument has an unsupported value.

    Examples:
        >>> import torch
        >>> from rednet.models import RedNet
        >>> [tuple(map.shape) for map in RedNet(26, out_indices=(0, 3))(torch.rand(1, 3, 65, 65))]
        [(1, 256, 17, 17), (1, 2048, 3, 3)]
    """

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int = 64,
        base_channels: int = 64,
        stem_kernel_size: int = 3,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (3,),
        style: str = "pytorch",
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: OptionalConfig = None,
        norm_cfg: OptionalConfig = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: dict | list[dict] | None = None,
        *,
        kernel_size: int = 7,
        involution_cfg: OptionalConfig = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        given = [cfg for cfg in as_list(init_cfg) if not _lacks_checkpoint(cfg)]
        self.from_scratch = len(given) < len(as_list(init_cfg))
        if self.from_scratch:
            init_cfg, frozen_stages, norm_eval = given, -1, False
        super().__init__(init_cfg or _default_init_cfg())
        check_one_of("depth", depth, STAGE_BLOCKS)
        check_multiple("in_channels", in_channels, 1)
        check_multiple("stem_channels", stem_channels, 2 * GROUP_CHANNELS)
        check_multiple("base_channels", base_channels, GROUP_CHANNELS)
        check_stages(num_stages, strides, dilations, out_indices, frozen_stages)
        check_kernel_sizes(kernel_size=kernel_size, stem_kernel_size=stem_kernel_size)
        check_one_of("style", style, ("pytorch", "caffe"))
        check_layer_cfgs(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        check_involution_cfg(involution_cfg)
        check_probability("drop_path_rate", drop_path_rate)
        self.depth, self.num_stages, self.drop_path_rate = depth, num_stages, drop_path_rate
        self.strides, self.dilations = tuple(strides), tuple(dilations)
        self.out_indices, self.zero_init_residual = tuple(out_indices), zero_init_residual
        self.stage_blocks = STAGE_BLOCKS[depth][:num_stages]
        self.feat_dim = EXPANSION * base_channels * 2 ** (num_stages - 1)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.norm_cfg = norm_cfg = norm_cfg or dict(type="BN")
        check_norm(norm_cfg, min(stem_channels // 2, base_channels) // REDUCTION_RATIO)
        self.stem = _stem(in_channels, stem_channels, stem_kernel_size, conv_cfg, norm_cfg)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        block_cfg = dict(
            kernel_size=kernel_size,
            involution_cfg=involution_cfg,
            style=style,
            avg_down=avg_down,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            drop_path_rate=drop_path_rate,
        )
        stages = _stages(depth, stem_channels, base_channels, strides, dilations, **block_cfg)
        self._add_stages(stages)
        keep_gradient_strides(self)
        self._freeze_stages()
        self._register_load_state_dict_pre_hook(widen_stem_kernel, with_module=True)

    def _add_stages(self, stages: Iterable[nn.Module]) -> None:
        self.stage_names = []
        for number, stage in enumerate(stages, 1):
            self.stage_names.append(f"layer{number}")
            self.add_module(self.stage_names[-1], stage)

    def init_weights(self) -> None:
        """Initializes by ``init_cfg``, then zeroes the residual branches if nothing was loaded."""
        if self.from_scratch:
            print_log(_FROM_SCRATCH, logger="current", level=logging.WARNING)
        super().init_weights()
        if self.zero_init_residual and not loads_checkpoint(self.init_cfg):
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    constant_init(module.norm3, 0)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Maps an image (N, in_channels, H, W) to the tuple of the ``out_indices`` stages' maps."""
        output = _pooled_stem(self.stem, self.maxpool, _rearranged(input))
        outputs = []
        for index, name in enumerate(self.stage_names):
            output = getattr(self, name)(output)
            if index in self.out_indices:
                outputs.append(_arranged_back(output, input))
        return tuple(outputs)

    @property
    def res_layers(self) -> list[str]:
        """Names of the stages, as mmpretrain's and mmdet's ResNet have them."""
        return self.stage_names

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter, for mmpretrain's ``LearningRateDecayOptimWrapperConstructor``.

        The stem has depth 0, each block one more than the block before, and what follows the
        backbone the largest.

        Args:
            param_name: The parameter's name.
            prefix: Where the backbone is in the model: ``'backbone.'``.

        Returns:
            The depth of the parameter and the number of depths.
        """
        largest = sum(self.stage_blocks) + 1
        stage, _, rest = param_name.removeprefix(prefix).partition(".")
        if not param_name.startswith(prefix) or stage not in ("stem", *self.stage_names):
            return largest, largest + 1
        if stage == "stem":
            return 0, largest + 1
        before = sum(self.stage_blocks[: self.stage_names.index(stage)])
        return before + int(rest.partition(".")[0]) + 1, largest + 1

    def train(self, mode: bool = True) -> RedNet:
        """Sets training mode, except for frozen stages and, with ``norm_eval``, batch norms."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for name in ("stem", *self.stage_names[: self.frozen_stages]):
            getattr(self, name).eval().requires_grad_(False)


@fx.wrap
def _rearranged(image: Tensor) -> Tensor:
    """The image in the memory format to compute in; one node where torch.fx traces."""
    return _channels_last(image) if _is_faster_in_channels_last(image) else image


@fx.wrap
def _arranged_back(output: Tensor, image: Tensor) -> Tensor:
    """A map in the memory format of the image."""
    return output.contiguous() if _is_faster_in_channels_last(image) else output


def _is_faster_in_channels_last(image: Tensor) -> bool:
    """Whether to compute on an NCHW image in channels_last, and give the maps back in NCHW.

    On a CPU the whole network is faster for it (docs/performance.md); on a GPU the layout is left
    to the user. ONNX knows no memory formats, so exported graphs keep the image's own.
    """
    return image.device.type == "cpu" and image.stride(1) != 1 and not is_exporting()


def _channels_last(image: Tensor) -> Tensor:
    # torch.func.vmap refuses memory_format=torch.channels_last. A clone, since contiguous() would
    # leave an image of one channel as it is.
    pixels = image.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return pixels.permute(0, 3, 1, 2)


def _stem(
    in_channels: int, channels: int, kernel_size: int, conv_cfg: OptionalConfig, norm_cfg: dict
) -> nn.Sequential:
    half = channels // 2
    involution = Involution2d(
        half, half, kernel_size, padding=(kernel_size - 1) // 2, bias=False, norm_cfg=norm_cfg
    )
    convolution = dict(
        kernel_size=3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, inplace=False
    )
    return nn.Sequential(
        ConvModule(in_channels, half, stride=2, **convolution),
        involution,
        build_norm_layer(norm_cfg, half)[1],
        nn.ReLU(),  # not in place, which a full backward hook on the norm before would forbid
        ConvModule(half, channels, stride=1, **convolution),
    )


def _pooled_stem(stem: nn.Sequential, maxpool: nn.Module, image: Tensor) -> Tensor:
    # First: torch 2.1 cannot compile the rest.
    if is_recorded() or not (is_unmodified(stem, nn.Sequential) and len(stem) == 5):
        return maxpool(stem(image))
    first, involution, norm, activation, last = stem
    if may_finish(image):
        output = finish_module(first, image)
        output = finish(involution, output, norm, activation, makers=(Involution2d,))
        return maxpool(finish_module(last, output))
    output = consume_module(first, image, involution)
    return _pooled(last, maxpool, partial(consume, norm, activation, output))


def _pooled(last: Any, maxpool: nn.Module, consumed: Callable) -> Tensor:
    """The pooled output of the stem's last module, which is called by ``consumed``."""
    if not is_plain_module(last):
        return maxpool(consumed(last))
    return consume(last.norm, last.activate, consumed(last.conv), maxpool)


def _stages(
    depth: int,
    stem_channels: int,
    base_channels: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    **block_cfg: Any,
) -> Iterator[nn.Sequential]:
    """A stage for each stride."""
    in_channels = stem_channels
    for index, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
        blocks, mid_channels = STAGE_BLOCKS[depth][index], base_channels * 2**index
        yield _stage(blocks, in_channels, mid_channels, stride, dilation=dilation, **block_cfg)
        in_channels = mid_channels * EXPANSION


def _stage(
    blocks: int, in_channels: int, mid_channels: int, stride: int, **block_cfg: Any
) -> nn.Sequential:
    first = Bottleneck(in_channels, mid_channels, stride=stride, **block_cfg)
    rest = (
        Bottleneck(mid_channels * EXPANSION, mid_channels, **block_cfg) for _ in range(blocks - 1)
    )
    return nn.Sequential(first, *rest)


def _lacks_checkpoint(cfg: Any) -> bool:
    return is_pretrained(cfg) and cfg.get("checkpoint") is None


def _default_init_cfg() -> list[dict]:
    return [
        dict(type="Kaiming", layer=["Conv2d"]),
        dict(type="Constant", val=1, layer=["_BatchNorm", "GroupNorm"]),
    ]
