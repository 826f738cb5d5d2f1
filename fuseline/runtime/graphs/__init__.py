"""Graphs: a program's device work, recorded once for each set of sizes, and replayed.

    run = Graphed(program, CudaGraphs(device), mode="piecewise")
    run(arguments)       # the first call of a set of sizes runs plainly, the second one is recorded

A recording freezes addresses. Small inputs are copied to where it reads them; weights and state
must be where they were, which every call looks at. What cannot be recorded (a step that waits for
the device) runs between two recordings. The recorder is behind `Recorder`: CUDA graphs, and in the
tests one for the CPU that behaves like them.
"""

from fuseline.runtime.graphs.graphed import Graphed, SizeRecord
from fuseline.runtime.graphs.recorder import CudaGraphs, Recorder, Recording

__all__ = ["CudaGraphs", "Graphed", "Recorder", "Recording", "SizeRecord"]
