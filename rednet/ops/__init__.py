"""Pure tensor functions: the involution operator and its backends."""

from rednet.ops import cpu, cuda, reference, shifted, triton
from rednet.ops.backends import backend, explain_backends, register_backend
from rednet.ops.involution import involution2d

register_backend(cpu.BACKEND)
register_backend(cuda.BACKEND)
register_backend(triton.BACKEND)
register_backend(shifted.BACKEND)
register_backend(reference.BACKEND)
register_backend(triton.FUSED)

__all__ = ["backend", "explain_backends", "involution2d"]
