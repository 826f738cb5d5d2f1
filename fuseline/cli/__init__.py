"""The `fuseline` command. Its modules import nothing heavy until a command needs it."""

from fuseline.cli.program import main

__all__ = ["main"]
