"""Kernel choice and typed template contexts, one module per kernel family."""
