"""From PyTorch programs to the IR: capture, and import."""
