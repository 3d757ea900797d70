"""What ``mmcv._ext`` offers: each of its functions that is served, by its name there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rednet.errors import MissingDependencyError
from rednet.mmcv_ops import (
    box_overlaps,
    carafe,
    deform_attention,
    deform_conv,
    deform_roi_pool,
    focal_loss,
    masked_conv,
    nms,
    psa_mask,
    roi_align,
    roi_pool,
    sync_bn,
)
from rednet.mmcv_ops.installation import (
    MMCV_PACKAGES,
    import_torchvision,
    installed_version,
)

torchvision = import_torchvision("mmcv was installed without its compiled operators and needs")


def get_compiler_version() -> str:
    """Mmcv asks for the compiler of its operators; torchvision's are compiled already."""
    return f"torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """Mmcv asks for the CUDA version of its operators; torchvision's follow PyTorch's."""
    return torch.version.cuda or "not available"


# Who computes them, by group of operators: for `python -m rednet`.
TORCHVISION_GROUPS: dict[str, tuple[Callable[..., Any], ...]] = {
    "nms": (nms.nms,),
    "RoIAlign": (roi_align.roi_align_forward, roi_align.roi_align_backward),
    "deformable convolution": (
        deform_conv.deform_conv_forward,
        deform_conv.deform_conv_backward_input,
        deform_conv.deform_conv_backward_parameters,
        deform_conv.modulated_deform_conv_forward,
        deform_conv.modulated_deform_conv_backward,
    ),
}
PYTORCH_GROUPS: dict[str, tuple[Callable[..., Any], ...]] = {
    "soft nms, nms with matches": (nms.softnms, nms.nms_match),
    "RoIPool": (roi_pool.roi_pool_forward, roi_pool.roi_pool_backward),
    "deformable RoI pooling": (
        deform_roi_pool.deform_roi_pool_forward,
        deform_roi_pool.deform_roi_pool_backward,
    ),
    "focal losses": (
        focal_loss.sigmoid_focal_loss_forward,
        focal_loss.sigmoid_focal_loss_backward,
        focal_loss.softmax_focal_loss_forward,
        focal_loss.softmax_focal_loss_backward,
    ),
    "multi-scale deformable attention": (
        deform_attention.ms_deform_attn_forward,
        deform_attention.ms_deform_attn_backward,
    ),
    "masked convolution": (masked_conv.masked_im2col_forward, masked_conv.masked_col2im_forward),
    "CARAFE": (
        carafe.carafe_forward,
        carafe.carafe_backward,
        carafe.carafe_naive_forward,
        carafe.carafe_naive_backward,
    ),
    "PSA mask": (psa_mask.psamask_forward, psa_mask.psamask_backward),
    "box overlaps": (box_overlaps.bbox_overlaps,),
    "synchronized batch norm": (
        sync_bn.sync_bn_forward_mean,
        sync_bn.sync_bn_forward_var,
        sync_bn.sync_bn_forward_output,
        sync_bn.sync_bn_backward_param,
        sync_bn.sync_bn_backward_data,
    ),
    "versions": (get_compiler_version, get_compiling_cuda_version),
}
OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for groups in (TORCHVISION_GROUPS, PYTORCH_GROUPS)
    for functions in groups.values()
    for function in functions
}


def unsupported(name: str) -> Callable[..., Any]:
    """The module's ``__getattr__``: a function that says which operator is missing.

    mmcv.ops asks at import for every operator that it has, so a name must be found for all of them.
    """
    if name.startswith("_"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def missing(*args: Any, **kwargs: Any) -> Any:
        package = next((each for each in MMCV_PACKAGES if installed_version(each)), "mmcv-lite")
        compiled = package if package == "onedl-mmcv" else "mmcv==2.1.0"
        raise MissingDependencyError(
            f"mmcv's operator {name} needs compiled mmcv, and {package} is installed without "
            f"compiled operators: pip uninstall -y {package}, then with torch installed "
            f"MMCV_WITH_OPS=1 pip install --no-build-isolation {compiled}"
        )

    return missing
