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
from fuseline.runtime.build import KernelSource, Library, build_piece, find_piece
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

    @classmethod
    def of(cls, library: Library, binding: Path | None) -> Runner:
        """The runner from files that were built elsewhere: its library, and the extension module
        where there is one for this Python.

        Raises:
            BuildError: FL0705, where it is no library of a runner.
        """
        functions = _ready(library)
        module = None if binding is None else _connected(binding, functions)
        if module is None:
            return cls("ctypes", functions, run_by_ctypes(functions), None, addresses_of)
        return cls("extension", functions, module.run, module.Signature, module.addresses)

    @staticmethod
    def files(cache: Cache, toolchain: Toolchain) -> tuple[Path, Path | None]:
        """The files that `of` takes, built if need be; the second one is for this Python only.

        Raises:
            BuildError: the runner cannot be built or loaded.
        """
        portable = toolchain.portable
        library = build_piece(cache, portable, [_source()], flags=_FLAGS)
        binding = _binding_library(cache, portable)
        return library.path, None if binding is None else binding.path

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
    return _ready(build_piece(cache, toolchain, [_source()], flags=_FLAGS))


@memo
def _ready(library: Library) -> Functions:
    """The functions of a runner's library, told of the limits of this process's threads."""
    functions = Functions.of(library)
    functions.use_limits(ctypes.byref(LimitsStructure(*_torch.thread_limits())))
    return functions


def _source() -> KernelSource:
    headers = {name: _text(name) for name in (ABI, TEAM)}
    return KernelSource("fuseline_runner", _text("runner.cpp"), headers=headers)


@memo
def _binding(cache: Cache, toolchain: Toolchain, functions: Functions) -> _Binding | None:
    """The extension module, None where it cannot be had."""
    if _torch.dlpack_exchange() is None:
        logger.info("torch has no DLPack table: native code is entered through ctypes")
        return None
    library = _binding_library(cache, toolchain)
    return None if library is None else _connected(library.path, functions)


def _binding_library(cache: Cache, toolchain: Toolchain) -> Library | None:
    """The library of the extension module, None where it cannot be built."""
    include = python_include()
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
        return library or build_piece(cache, toolchain, [source])
    except BuildError as error:
        logger.warning("%s; native code is entered through ctypes", error)
        return None


def _connected(path: Path, functions: Functions) -> _Binding | None:
    """The extension module of a file, None where it does not fit this torch."""
    exchange = _torch.dlpack_exchange()
    if exchange is None:
        return None
    loader = ExtensionFileLoader(BINDING, str(path))
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
