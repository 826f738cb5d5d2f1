"""fuseline's intermediate representation: typed SSA ops over tensors with symbolic dims."""

from fuseline.ir import ops

__all__ = ["ops"]
