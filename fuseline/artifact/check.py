"""Whether what a manifest says fits together, so that nothing that follows it finds a hole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from fuseline.artifact.codec import GREATEST, MalformedError
from fuseline.artifact.weights import Zeros

if TYPE_CHECKING:
    from fuseline.artifact.manifest import CudaKernel, Manifest, Target

_TARGET = re.compile(r"cpu|sm_[1-9][0-9]{1,2}")
_MACHINE = re.compile(r"[A-Za-z0-9_. -]{0,64}")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
_SYMBOL = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,1023}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

MOST_SHARED = 1 << 20
MOST_SCRATCH = 1 << 31
MOST_WARPS = 32
"""Of a kernel for GPUs: bytes of shared memory and of scratch, and warps of a block."""


def check_manifest(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Hold a manifest against itself and the sizes of the members that are in the file.

    Raises:
        MalformedError: something does not fit.

    """
    for name, member in manifest.members.items():
        if not _DIGEST.fullmatch(member.sha256):
            raise MalformedError(f"{name!r} has a digest that is none")
        if member.size != sizes[name]:
            raise MalformedError(f"{name!r} of {sizes[name]} bytes, not {member.size}")
    _each_once("programs", manifest.programs)
    _each_once("targets", [t.title for t in manifest.targets])
    _each_once("machines", [n.machine for n in manifest.native])
    if not manifest.programs:
        raise MalformedError("a manifest without a program")
    for name in manifest.programs:
        if not _WORD.fullmatch(name) or not name:
            raise MalformedError(f"a program of the name {name[:80]!r}")
    for target in manifest.targets:
        _target(manifest, target)
    for machine in (*(t.machine for t in manifest.targets), *(n.machine for n in manifest.native)):
        if not _MACHINE.fullmatch(machine):
            raise MalformedError(f"a machine {machine[:80]!r}")
    for name in _referred(manifest):
        if name not in manifest.members:
            raise MalformedError(f"no member {name[:200]!r}")
    if (text := manifest.text) is not None and {"prefill", "decode"} - set(manifest.programs):
        raise MalformedError("a language model without a prefill and a decode step")
    if text is not None and (text.batch < 1 or text.length < 1):
        raise MalformedError(f"a cache of {text.batch} sequences of {text.length} tokens")
    weights = manifest.weights
    if (weights.member is None) == (weights.file is None):
        raise MalformedError("weights in a member and beside it, or in neither")
    if weights.file is not None and not _DIGEST.fullmatch(weights.file[1].sha256):
        raise MalformedError("weights with a digest that is none")
    zeros = sum(at.nbytes for at in weights.tensors.values() if isinstance(at, Zeros))
    if zeros > GREATEST:
        raise MalformedError(f"zeros of {zeros} bytes")


def _target(manifest: Manifest, target: Target) -> None:
    name = target.name
    if not _TARGET.fullmatch(name) or not _WORD.fullmatch(target.isa):
        raise MalformedError(f"a target {target.title[:80]!r}")
    if not all(map(_WORD.fullmatch, target.features)):
        raise MalformedError(f"{target.title} needs what no processor has")
    programs = set(manifest.programs)
    if set(target.programs) != programs or set(target.ir) != programs:
        raise MalformedError(f"{target.title} with other programs than the file")
    if not set(target.libraries) <= programs:
        raise MalformedError(f"{target.title} with libraries of other programs")
    if name != "cpu" and any(native.launcher is None for native in manifest.native):
        raise MalformedError(f"{target.title}, and nothing that launches its kernels")
    for symbol in (*target.kernels, *target.sources):
        if not is_symbol(symbol):
            raise MalformedError(f"a kernel of the name {symbol[:80]!r}")
    for symbol, kernel in target.kernels.items():
        _kernel(symbol, kernel)


def _kernel(symbol: str, kernel: CudaKernel) -> None:
    limits = (
        ("warps", kernel.warps, 1, MOST_WARPS),
        ("bytes of shared memory", kernel.shared_memory, 0, MOST_SHARED),
        ("bytes of scratch", kernel.scratch, 0, MOST_SCRATCH),
        ("scratch pointers", kernel.scratch_pointers, 0, len(kernel.parameters)),
    )
    for what, value, least, most in limits:
        if not least <= value <= most:
            raise MalformedError(f"{symbol!r} with {value} {what}")
    if kernel.cubin is None and kernel.ptx is None:
        raise MalformedError(f"{symbol!r} without code")


def is_symbol(name: str) -> bool:
    """Whether a kernel may have this name: that of a function in C, not one of Python's own."""
    return _SYMBOL.fullmatch(name) is not None and not name.startswith("_")


def _each_once(what: str, names: Iterable[str]) -> None:
    found = list(names)
    if len(set(found)) != len(found):
        raise MalformedError(f"{what} of the same name")


def _referred(manifest: Manifest) -> Iterator[str]:
    """Every member that the manifest names."""
    for target in manifest.targets:
        for places in (target.programs, target.ir, target.libraries, target.sources):
            yield from places.values()
        for kernel in target.kernels.values():
            yield from (name for name in (kernel.cubin, kernel.ptx) if name is not None)
    for native in manifest.native:
        yield native.runner
        yield from native.bindings.values()
        if native.launcher is not None:
            yield native.launcher
    if manifest.weights.member is not None:
        yield manifest.weights.member
    if manifest.text is not None and manifest.text.tokenizer is not None:
        yield manifest.text.tokenizer


__all__ = ["check_manifest", "is_symbol"]
