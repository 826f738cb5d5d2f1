"""Which code a processor runs: what that needs, and what the machine at hand has."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

ISAS = {
    "baseline": ((), ()),
    "x86-64-v3": (
        ("-march=x86-64-v3",),
        *[("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "popcnt", "sse4_2")],
    ),
}
"""Options of the compiler for a named instruction set, and what a processor must have for it."""

_FLAGS = {
    **dict.fromkeys(("avx", "avx2", "fma", "f16c", "movbe", "popcnt", "bmi2", "adx", "gfni")),
    **dict.fromkeys(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512ifma")),
    **dict.fromkeys(("avx512vbmi", "vaes", "vpclmulqdq")),
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}
"""Of the compiler's words for what a processor has, those of which code may be made without asking
for it; and the word for the same in ``/proc/cpuinfo``, where that is another."""


def machine() -> str:
    """This kind of machine, as ``x86_64 linux``."""
    return f"{platform.machine()} {platform.system()}".lower()


_FEATURES = {"neon": "asimd", "fp16": "asimdhp", "sve": "sve", "bf16": "bf16"}
"""The words of `fuseline.runtime.toolchain` for what ARM processors have, and the system's."""


def needed(options: Iterable[str], features: Iterable[str] = ()) -> tuple[str, ...]:
    """What code needs that was compiled with these options, by a compiler that says that with them
    the processor has these features.
    """
    words = {option.removeprefix("-m") for option in options}
    words |= {feature.replace("amx_", "amx-") for feature in features}
    found = {_FLAGS[w] or w for w in words & _FLAGS.keys()}
    return tuple(sorted(found | {_FEATURES[f] for f in set(features) & _FEATURES.keys()}))


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """What the processor at hand has, in the words of ``/proc/cpuinfo``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(words, "").split())


__all__ = ["ISAS", "features", "machine", "needed"]
