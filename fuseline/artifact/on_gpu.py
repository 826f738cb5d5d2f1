"""What a loaded artifact needs beside, where it runs on a GPU: binaries, their launcher, graphs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fuseline.artifact.archive import Archive
from fuseline.artifact.choose import Choice
from fuseline.artifact.manifest import Manifest
from fuseline.config import Config
from fuseline.runtime.build import Library
from fuseline.runtime.executor import Program
from fuseline.runtime.gpu.aligned import Aligned
from fuseline.runtime.gpu.binary import Binary
from fuseline.runtime.gpu.kernels import DeviceKernels, Launcher
from fuseline.runtime.graphs import CudaGraphs, Graphed

Run = Any
"""Takes the flat arguments of a plan, and gives its results."""


class Gpu:
    """The kernels of an artifact on a GPU.

    Args:
        archive: of the file.
        manifest: of it.
        choice: what runs, and where.
        config: whether calls become graphs, and how kernels are launched.
        launcher: the file's code that launches kernels.

    """

    def __init__(
        self,
        archive: Archive,
        manifest: Manifest,
        choice: Choice,
        config: Config,
        launcher: Library,
    ) -> None:
        self._archive, self._manifest = archive, manifest
        self._choice, self._config = choice, config
        self._launcher = Launcher.of(launcher)

    def kernels(self, symbols: Iterable[str]) -> DeviceKernels:
        """The kernels of one program, loaded when they are first launched.

        Raises:
            ArtifactError: FL1103, where one was changed.

        """
        return DeviceKernels(
            *({symbol: self._binary(symbol) for symbol in symbols}, self._launcher),
            *(self._choice.device, self._choice.target.name),
            branches=self._config.side_stream,
            early=self._config.early_launch,
        )

    def run(self, program: Program) -> Run:
        """How a program is called: from graphs, unless that is turned off."""
        graphs = self._config.graphs
        run: Run = program
        if graphs != "none":
            mode = "full" if graphs == "full" else "piecewise"
            largest = 512 if graphs == "auto" else None
            run = Graphed(program, CudaGraphs(program.device), mode=mode, largest=largest)
        return Aligned(run, program.plan)

    def _binary(self, symbol: str) -> Binary:
        """The code of a kernel: a cubin, or PTX, of which the driver makes one."""
        kernel = self._choice.target.kernels[symbol]
        member = kernel.ptx if self._choice.ptx else kernel.cubin
        assert member is not None, "the choice has looked"
        code = self._archive.checked(member, self._manifest.members[member])
        return Binary(
            symbol=symbol,
            cubin=code + b"\0" * self._choice.ptx,
            parameters=kernel.parameters,
            warps=kernel.warps,
            shared_memory=kernel.shared_memory,
            resources=dict(kernel.resources),
            scratch=kernel.scratch,
            scratch_pointers=kernel.scratch_pointers,
            waits=kernel.waits,
        )


__all__ = ["Gpu"]
