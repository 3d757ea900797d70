"""Convolution of each sample with its own kernel, a mixture of experts that all samples share."""

from rednet.ops.expert_conv.expert_conv import expert_conv2d
from rednet.ops.expert_conv.problem import Factors, Window

__all__ = ["Factors", "Window", "expert_conv2d"]
