"""Kernels for NVIDIA GPUs: Triton contexts, and the lowerings onto them."""
