"""Sigmoid and softmax focal loss.

From `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32, gradients

# Logarithms are taken of at least this, as in mmcv.
_SMALLEST = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills the output with the loss of each element.

    Args:
        input: Logits, shape (N, C).
        target: Classes, shape (N,); C, or any other number that is not a class, is background.
        weight: A factor for each class, shape (C,), or empty.
        output: Shape (N, C).
        gamma: Focusing parameter.
        alpha: Weight of the positive elements; the negative ones have 1 - alpha.
    """
    (logits,) = at_least_float32(input)
    output.copy_(_sigmoid_focal_loss(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``grad_input``, (N, C), with the derivative of each element's loss by its logit."""
    (logits,) = at_least_float32(input)

    def loss(logits: Tensor) -> Tensor:
        return _sigmoid_focal_loss(logits, target, weight, gamma, alpha)

    grad_input.copy_(gradients(loss, [logits], torch.ones_like(logits))[0])


def _sigmoid_focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_positive = target[:, None] == classes
    probability = logits.sigmoid()
    positive = -alpha * (1 - probability) ** gamma * probability.clamp(min=_SMALLEST).log()
    negative = -(1 - alpha) * probability**gamma * (1 - probability).clamp(min=_SMALLEST).log()
    loss = torch.where(is_positive, positive, negative)
    return loss * _factors(weight, target)[:, None].to(loss.dtype) if weight.numel() else loss


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills the output with the loss of each sample.

    Args:
        input: Probabilities, shape (N, C).
        target: Classes, shape (N,); a sample of a negative class has no loss.
        weight: A factor for each class, shape (C,), or empty.
        output: Shape (N,).
        gamma: Focusing parameter.
        alpha: Factor of the loss.
    """
    (probabilities,) = at_least_float32(input)
    output.copy_(_softmax_focal_loss(probabilities, target, weight, gamma, alpha))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buffer: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fills ``grad_input``, (N, C), with the derivative of each sample's loss by its logits."""
    (probabilities,) = at_least_float32(input)

    def loss(logits: Tensor) -> Tensor:
        return _softmax_focal_loss(logits.softmax(dim=1), target, weight, gamma, alpha)

    # Logits that give these probabilities; the derivative does not depend on which.
    logits = probabilities.clamp(min=_SMALLEST).log()
    ones = logits.new_ones(len(logits))
    grad_input.copy_(gradients(loss, [logits], ones)[0])


def _softmax_focal_loss(
    probabilities: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    own = probabilities.gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = -alpha * (1 - own) ** gamma * own.clamp(min=_SMALLEST).log()
    loss = torch.where(target >= 0, loss, torch.zeros_like(loss))
    return loss * _factors(weight, target).to(loss.dtype) if weight.numel() else loss


def _factors(weight: Tensor, target: Tensor) -> Tensor:
    """Each sample's factor; 1 for a target that is not a class."""
    is_class = (target >= 0) & (target < len(weight))
    factors = weight[target.clamp(0, len(weight) - 1)]
    return torch.where(is_class, factors, torch.ones_like(factors))
