"""The expert convolution by the compiled kernel that mixes kernels where it multiplies them."""

from __future__ import annotations

from torch import Tensor

from rednet.ops.autocast import autocast_dtype
from rednet.ops.checks import is_plain
from rednet.ops.cpu import loader
from rednet.ops.cpu.expert_conv import convolve_experts, expert_gradients
from rednet.ops.expert_conv.forms import is_pointwise, layout
from rednet.ops.expert_conv.problem import Window, output_size
from rednet.ops.tracing import is_recorded

# Kernels of as many times an image's numbers take longer to write, and to read, than to mix again.
_LEAST_RATIO = 16
# With fewer filters for each output pixel, unfolding the columns of large kernels takes longer.
_LEAST_FILTERS_PER_PIXEL = 2


def gains_by_products(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    window: Window,
) -> bool:
    """Whether the compiled kernel serves these tensors, here and now, and takes less time."""
    if window.groups != 1 or is_pointwise(experts.shape[3:], window):
        return False
    if experts[0].numel() < _LEAST_RATIO * input[0].numel():
        return False
    if not (scale is None or scale.shape[1] == 1):
        return False
    height, width = output_size(input, experts, window)
    if height * width == 0 or experts.shape[1] < _LEAST_FILTERS_PER_PIXEL * height * width:
        return False
    tensors = [each for each in (input, experts, routing, scale, bias) if each is not None]
    return (
        not is_recorded()
        and all(map(is_plain, tensors))
        and all(each.dtype == input.dtype and each.device.type == "cpu" for each in tensors)
        and input.dtype in loader.DTYPES
        and experts[0].is_contiguous()
        and autocast_dtype("cpu") is None
        and loader.load() is not None
    )


def convolve_by_products(
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    window: Window,
) -> Tensor:
    """Convolves, where it gains; shapes as in ``convolve_in_tiles``. Has no gradient itself."""
    # Reading a channel in channels_last touches a line of memory for each pixel.
    output = convolve_experts(input.contiguous(), experts, routing, scale, bias, window)
    return output.contiguous(memory_format=layout(input))


def gradients_gain_by_products(
    grad: Tensor,
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    window: Window,
) -> bool:
    """The same of :func:`gradients_by_products`."""
    _, filters, depth, height, width = experts.shape
    return (
        filters % 8 == 0
        and depth * height * width % 48 == 0
        and height * width <= 256
        and grad.dtype == input.dtype
        and is_plain(grad)
        and gains_by_products(input, experts, routing, scale, None, window)
    )


def gradients_by_products(
    grad: Tensor,
    input: Tensor,
    experts: Tensor,
    routing: Tensor,
    scale: Tensor | None,
    window: Window,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of the input, of the experts, of the routing and of the scale."""
    found = expert_gradients(grad, input.contiguous(), experts, routing, scale, window)
    return found[0].contiguous(memory_format=layout(input)), *found[1:]
