"""Ahead of time: models captured whole, compiled for several targets, and written to one file."""

from fuseline.exporting.capture import Part
from fuseline.exporting.export import Exported, export, export_parts

__all__ = ["Exported", "Part", "export", "export_parts"]
