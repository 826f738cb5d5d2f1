"""Builds and loads the runner and its binding to Python, and makes pieces and signatures."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memo
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Literal, Protocol, cast

import torch

from fuseline import _torch
from fuseline.errors import BuildError
from fuseline.runtime.build import KernelSource, build_piece, find_piece
from fuseline.runtime.cache import Cache
from fuseline.runtime.native.fallback import Addresses, addresses_of, run_by_ctypes
from fuseline.runtime.native.piece import Launch, Piece, Run
from fuseline.runtime.native.signature import CPU, ArgumentSpec, NativeSignature, Signature
from fuseline.runtime.native.structures import Functions, LimitsStructure
from fuseline.runtime.toolchain import Toolchain, python_include

logger = logging.getLogger(__name__)

ABI = "fuseline_abi.h"
TEAM = "fuseline_team.h"
BINDING = "fuseline_binding"
_FLAGS = ("-pthread",)


class _Binding(Protocol):
    """The module that ``binding.cpp`` makes."""

    Signature: NativeSignature
    run: Run
    addresses: Addresses

    def connect(self, tensor_type: type, exchange: object, *functions: int) -> bool: ...


@dataclass(frozen=True)
class Runner:
    """The loaded runner; `binding` tells how it is entered."""

    binding: Literal["extension", "ctypes"]
    functions: Functions
    run: Run
    matcher: NativeSignature | None
    addresses: Addresses

    @classmethod
    def open(cls, cache: Cache, toolchain: Toolchain, *, extension: bool = True) -> Runner:
        """Build what is not in the cache, and load it. Without `extension`, or where it cannot be
        built, calls go through ctypes. It is built for every processor of this kind of machine.

        Raises:
            BuildError: the runner itself cannot be built or loaded.
        """
        portable = toolchain.portable
        functions = _functions(cache, portable)
        binding = _binding(cache, portable, functions) if extension else None
        if binding is None:
            return cls("ctypes", functions, run_by_ctypes(functions), None, addresses_of)
        return cls("extension", functions, binding.run, binding.Signature, binding.addresses)

    @staticmethod
    def is_in(cache: Cache, toolchain: Toolchain) -> bool:
        """Whether `open` needs no compiler.

        Raises:
            BuildError: FL0705, where the system does not load what is there.
        """
        return find_piece(cache, toolchain.portable, [_source()], flags=_FLAGS) is not None

    def piece(self, launches: Sequence[Launch], *, slots: int, threads: int = 1) -> Piece:
        """A piece on so many slots, run by at most so many threads (128 at the most)."""
        return Piece(
            *(self.functions, self.run, launches),
            slots=slots,
            threads=threads,
            sgemm=_torch.sgemm_address(),
        )

    def signature(
        self,
        arguments: Sequence[ArgumentSpec],
        symbols: Mapping[str, tuple[int, int | None]] | None = None,
        device: torch.device = CPU,
    ) -> Signature:
        """What a call takes; see `Signature`."""
        return Signature(arguments, symbols or {}, self.matcher, device=device)


@memo
def _functions(cache: Cache, toolchain: Toolchain) -> Functions:
    functions = Functions.of(build_piece(cache, toolchain, [_source()], flags=_FLAGS))
    functions.use_limits(ctypes.byref(LimitsStructure(*_torch.thread_limits())))
    return functions


def _source() -> KernelSource:
    headers = {name: _text(name) for name in (ABI, TEAM)}
    return KernelSource("fuseline_runner", _text("runner.cpp"), headers=headers)


@memo
def _binding(cache: Cache, toolchain: Toolchain, functions: Functions) -> _Binding | None:
    """The extension module, None where it cannot be had."""
    include, exchange = python_include(), _torch.dlpack_exchange()
    if exchange is None:
        logger.info("torch has no DLPack table: native code is entered through ctypes")
        return None
    source = KernelSource(
        BINDING,
        _text("binding.cpp"),
        headers={ABI: _text(ABI)},
        include=() if include is None else (include,),
        identity=EXTENSION_SUFFIXES[0],
    )
    try:
        library = find_piece(cache, toolchain, [source])
        if library is None and include is None:
            logger.info("no Python.h: native code is entered through ctypes")
            return None
        library = library or build_piece(cache, toolchain, [source])
    except BuildError as error:
        logger.warning("%s; native code is entered through ctypes", error)
        return None
    loader = ExtensionFileLoader(BINDING, str(library.path))
    spec = spec_from_loader(BINDING, loader)
    assert spec is not None, "a loader was given"
    binding = cast("_Binding", module_from_spec(spec))
    names = ("piece_set", "piece_uses", "piece_begin", "piece_go", "piece_fault", "piece_end")
    addresses = [functions.addresses[name] for name in names]
    if not binding.connect(torch.Tensor, exchange, *addresses):
        logger.info("unknown DLPack exchange table: native code is entered through ctypes")
        return None
    return binding


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text()
