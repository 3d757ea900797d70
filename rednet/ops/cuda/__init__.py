"""The CUDA backend: the kernels of ``involution.cu``, which CuPy compiles when they are needed.

CuPy is imported when the first CUDA tensor arrives, not before.
"""

from rednet.ops.cuda.backend import BACKEND

__all__ = ["BACKEND"]
