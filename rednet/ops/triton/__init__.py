"""The Triton backend, for GPUs on machines without CuPy. Triton is imported when it is used."""

from rednet.ops.triton.backend import BACKEND, FUSED

__all__ = ["BACKEND", "FUSED"]
