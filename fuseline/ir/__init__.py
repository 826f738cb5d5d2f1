"""fuseline's intermediate representation: typed SSA ops over tensors with symbolic dims."""
