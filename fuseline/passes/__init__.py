"""Passes over the IR, one module each; `pipeline` lists them in order."""
