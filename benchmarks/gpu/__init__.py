"""Times kernels and decode steps on an NVIDIA GPU, beside eager and torch.compile."""
