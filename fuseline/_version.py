"""The version of the package, read by the build and by generated code."""

__version__ = "0.1.0"
