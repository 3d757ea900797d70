"""Convolution of each sample with its own kernel, a mixture of experts that all samples share."""

from rednet.ops.expert_conv.expert_conv import Factors, Window, expert_conv2d

__all__ = ["Factors", "Window", "expert_conv2d"]
