"""Native pieces: contiguous kernel launches that run in one call, entered from Python in about a
microsecond.

    runner = Runner.open(cache, toolchain)                  # built once, then from the cache
    piece = runner.piece(steps, slots=3, threads=2)         # steps: sequence of `Launch`
    piece([x, weight, y])                                   # the tensor (or None) of each slot

A slot is memory: an input, a result, a weight, an arena. A launch names its buffers by slot and
byte offset, so a call only fills slots in. A tensor that is given is read anew in every call; a
slot that gets None keeps what `piece.bind` gave it, or is null. Tensors are neither checked nor
kept: that is what a `Signature` is for, and the caller.

    spec = ArgumentSpec("x", torch.float32, ("rows", 64))
    signature = runner.signature([spec], {"rows": (1, 512)})
    signature.match([x])           # the symbols' values as a tuple, or the number of a bad argument
    signature.mismatch([x], 0)     # then: what is wrong with it

`Runner.addresses` tells where some of the arguments of a call lie, to be compared with where they
lay before.

All of it exists twice: in C++ (`binding.cpp`, which reads tensors through DLPack), and in Python,
where ``Python.h`` or torch's exchange table is missing. They behave alike; `Runner.binding` tells.
"""

from fuseline.runtime.native.piece import Launch, Piece, StepTime
from fuseline.runtime.native.runner import Runner
from fuseline.runtime.native.signature import ArgumentSpec, Mismatch, Signature
from fuseline.runtime.native.structures import MOST_SHARES

__all__ = [
    "MOST_SHARES",
    "ArgumentSpec",
    "Launch",
    "Mismatch",
    "Piece",
    "Runner",
    "Signature",
    "StepTime",
]
