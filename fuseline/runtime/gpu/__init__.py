"""Kernels for NVIDIA GPUs: cross-compiled without one, kept in the cache, loaded where one is."""
