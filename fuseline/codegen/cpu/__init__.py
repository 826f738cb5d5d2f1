"""Kernels for the target cpu: C++ contexts, and the lowerings onto them."""
