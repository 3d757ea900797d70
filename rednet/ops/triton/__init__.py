"""The Triton backend: for GPUs where CuPy is not installed. Triton is imported when it is used."""
