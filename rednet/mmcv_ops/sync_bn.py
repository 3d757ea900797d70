"""The steps of mmcv's synchronized batch norm between which it exchanges sums of the processes.

Images have shape (N, C, L), statistics shape (C,).
"""

from __future__ import annotations

from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Fills the mean of each channel."""
    mean.copy_(input.to(mean.dtype).mean(dim=(0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Fills the variance of each channel around a given mean."""
    centered = input.to(var.dtype) - mean[:, None]
    var.copy_(centered.square().mean(dim=(0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Fills the standardized images ``norm``, ``std`` and the output; updates running statistics.

    Args:
        input: The images of this process.
        mean: Mean over all processes.
        var: Variance over all processes.
        weight: Scale, or empty.
        bias: Shift, or empty.
        running_mean: Updated unless it is empty.
        running_var: Updated by the unbiased variance unless it is empty.
        norm: As ``input``.
        std: As ``mean``.
        output: As ``input``.
        eps: Added to the variance.
        momentum: Share of the new statistics in the running ones.
        group_size: Number of processes.
    """
    std.copy_((var + eps).sqrt())
    standardized = (input.to(std.dtype) - mean[:, None]) / std[:, None]
    norm.copy_(standardized)
    scaled = standardized * weight[:, None] if weight.numel() else standardized
    output.copy_(scaled + bias[:, None] if bias.numel() else scaled)
    if running_mean.numel():
        count = input.shape[0] * input.shape[2] * group_size
        unbiased = var * (count / (count - 1)) if count > 1 else var
        running_mean.add_((mean - running_mean) * momentum)
        running_var.add_((unbiased - running_var) * momentum)


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Fills the gradients of scale and shift by this process's images."""
    grad = grad_output.to(grad_weight.dtype)
    grad_weight.copy_((grad * norm).sum(dim=(0, 2)))
    grad_bias.copy_(grad.sum(dim=(0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Fills ``grad_input``; the gradients of scale and shift are means over the processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    shared = (norm * grad_weight[:, None] + grad_bias[:, None]) / count
    grad = grad_output.to(shared.dtype) - shared
    grad_input.copy_(grad * (weight / std)[:, None])
