"""Damaged and malicious artifacts, made of a good one.

A mutation is of the bytes, of the zip's fields, or of what members say, in which case the digests
are made anew, so that what lies behind them is reached.
"""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuseline.artifact.archive import PAGE, Archive, Writer
from fuseline.artifact.manifest import MANIFEST
from tests.artifact import grafts

Mutation = Callable[["Good", random.Random], bytes]

NUMBERS = (0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 10**40)
TEXTS = (
    "", "x", "main", "cpu", "sm_90", "float32", "complex128", "../x", "/etc/passwd", "a\0b",
    "\x1b[2J", "\ud800", "num_workers", "lambda", "Max(1, 2)", "((9**8)**8)**8", "1//0", "-(1)",
    "B", "B**8", "B - 100", "2**63", "_handle", "arg", "host", "temp", "scratch", "HostOp",
    "View", "weights.safetensors", MANIFEST, "x" * 5000,
)  # fmt: skip


class Good:
    """An artifact that is good: its bytes, and its members in order."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        archive = Archive.open(path)
        self.members = {name: archive.read(name) for name in archive.names}
        self.manifest: Any = json.loads(self.members[MANIFEST])
        self.ends = _fields(self.data)

    def with_more(self, more: dict[str, bytes]) -> bytes:
        """The file with further members, which the manifest does not know."""
        out = io.BytesIO()
        writer = Writer(out)
        for name, data in {**self.members, **more}.items():
            writer.add_bytes(name, data, PAGE if name == "weights.safetensors" else 0)
        writer.end()
        return out.getvalue()

    def with_members(self, changed: dict[str, bytes], manifest: Any = None) -> bytes:
        """The file with other members, and a manifest that knows them."""
        about: Any = json.loads(self.members[MANIFEST]) if manifest is None else manifest
        out = io.BytesIO()
        writer = Writer(out)
        for name, data in self.members.items():
            if name != MANIFEST:
                align = PAGE if name == "weights.safetensors" else 0
                writer.add_bytes(name, changed.get(name, data), align)
        if manifest is None:
            for name, member in writer.members.items():
                about["members"][name] |= {"sha256": member.sha256, "size": member.size}
        writer.add_bytes(MANIFEST, changed.get(MANIFEST) or json.dumps(about).encode())
        writer.end()
        return out.getvalue()


def _fields(data: bytes) -> list[int]:
    """Where headers of the zip begin."""
    found: list[int] = []
    for sign in (b"PK\1\2", b"PK\3\4", b"PK\5\6"):
        at = data.find(sign)
        while at >= 0:
            found.append(at)
            at = data.find(sign, at + 4)
    return found


# -- bytes -----------------------------------------------------------------------------------------


def flip(good: Good, rng: random.Random) -> bytes:
    """Some bits, others."""
    data = bytearray(good.data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(good: Good, rng: random.Random) -> bytes:
    """The beginning, or the end, alone."""
    at = rng.randrange(len(good.data))
    return good.data[:at] if rng.random() < 0.7 else good.data[at:]


def splice(good: Good, rng: random.Random) -> bytes:
    """A part in another place, twice, or not at all."""
    data = good.data
    one, other = sorted(rng.randrange(len(data)) for _ in range(2))
    other = min(other, one + rng.choice((1, 16, 4096, 100_000)))
    at, part = rng.randrange(len(data)), data[one:other]
    match rng.randrange(4):
        case 0:
            return data[:at] + part + data[at:]
        case 1:
            return data[:at] + part + data[at + len(part) :]
        case 2:
            return data[:one] + data[other:]
        case _:
            return data[:one] + bytes(len(part)) + data[other:]


def zip_field(good: Good, rng: random.Random) -> bytes:
    """A field of a header of the zip with another number."""
    data = bytearray(good.data)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice(good.ends) + rng.randrange(4, 46)
        form = rng.choice("BHL")
        size = struct.calcsize(f"<{form}")
        if at + size > len(data):
            continue
        (old,) = struct.unpack_from(f"<{form}", data, at)
        new = rng.choice(
            (0, 1, old + 1, old - 1, old * 2, (1 << 8 * size) - 1, rng.getrandbits(32))
        )
        struct.pack_into(f"<{form}", data, at, new % (1 << 8 * size))
    return bytes(data)


# -- what members say ------------------------------------------------------------------------------


def manifest_json(good: Good, rng: random.Random) -> bytes:
    """The manifest with other values."""
    about = json.loads(good.members[MANIFEST])
    for _ in range(rng.choice((1, 1, 2, 4))):
        about = changed(about, rng)
    return good.with_members({}, about)


def program_json(good: Good, rng: random.Random) -> bytes:
    """A program with other values, of which the manifest has the digest."""
    name = rng.choice(
        [n for n in good.members if n.startswith("programs/") and n.endswith(".json")]
    )
    program = json.loads(good.members[name])
    for _ in range(rng.choice((1, 1, 2, 4))):
        program = changed(program, rng)
    return good.with_members({name: json.dumps(program).encode()})


def raw_json(good: Good, rng: random.Random) -> bytes:
    """A text that is JSON, or nearly so: a name twice, no numbers, no end."""
    names = [n for n in good.members if n.endswith(".json")]
    name = rng.choice(names)
    text = good.members[name]
    at = rng.randrange(len(text))
    part = rng.choice(
        (
            b"[" * 5000,
            b'{"a":' * 5000,
            b"NaN",
            b"1e999",
            b"9" * 5000,
            b'"\\ud800"',
            b"\xff",
            b"\0",
            b",",
        )
    )
    match rng.randrange(4):
        case 0:
            text = text[:at] + part + text[at:]
        case 1:
            text = text[:at] + part
        case 2:
            text = text[: text.index(b"{") + 1] + b'"schema":1,"is":"Manifest",' + text[1:]
        case _:
            text = text[:at] + text[at + rng.randrange(1, 20) :]
    return good.with_members({name: text})


def func_text(good: Good, rng: random.Random) -> bytes:
    """A func with other words."""
    name = rng.choice([n for n in good.members if n.endswith(".ir")])
    words = good.members[name].decode().split(" ")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(words))
        words[at] = rng.choice(
            (
                *(rng.choice(words), "", "%x", "f32[9**8**8]", "{" * 300, "((((", "2**9999"),
                *("f32[(s77 + 1)**4000]", "f32[s77**s77**s77]", "9" * 5000, "(" * 50_000),
                *("f32[" + "s77*" * 3000 + "1]", "f32[Max(" * 200, "inf", "nan", "1e999"),
                *TEXTS[:6],
            )
        )
    return good.with_members({name: " ".join(words).encode("utf-8", "replace")})


def weights_head(good: Good, rng: random.Random) -> bytes:
    """Weights with another head, or another size of it."""
    data = good.members["weights.safetensors"]
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        new = rng.choice((0, size - 1, size + 1, len(data), 2**63, rng.getrandbits(64)))
        return good.with_members({"weights.safetensors": new.to_bytes(8, "little") + data[8:]})
    head = json.loads(data[8 : 8 + size])
    for _ in range(rng.choice((1, 1, 2))):
        head = changed(head, rng)
    text = json.dumps(head).encode()
    if rng.random() < 0.5:
        text += b" " * (-(len(text) + 8) % 64)
    whole = len(text).to_bytes(8, "little") + text + data[8 + size :]
    return good.with_members({"weights.safetensors": whole})


def changed(value: Any, rng: random.Random) -> Any:
    """JSON with one of its values another."""
    if not _is(value, dict, list) or not value:
        return value
    holder, last = _somewhere(value, rng)
    old = holder[last]
    match rng.randrange(10):
        case 0 if _is(holder, dict):
            del holder[last]
        case 0:
            holder.insert(last, old)
        case 1 if _is(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(last)
        case 1:
            del holder[last]
        case 2 if _is(old, list) and old:
            holder[last] = old * rng.choice((2, 100))
        case 3:
            other, name = _somewhere(value, rng)
            holder[last] = json.loads(json.dumps(other[name]))
        case 4 | 5 if isinstance(old, int):
            holder[last] = rng.choice((old + 1, old - 1, -old, old * 1000))
        case 4 | 5 | 6 if isinstance(old, str):
            holder[last] = rng.choice(
                (f"({old})**8", f"{old}*{old}", old[1:], f"{old} - 1000", f"-{old}")
            )
        case 7:
            others: list[Any] = [None, True, [], {}, 1.5, _deep(rng.choice((10, 300)))]
            holder[last] = rng.choice(others)
        case 8:
            holder[last] = rng.choice(TEXTS)
        case _:
            holder[last] = rng.choice(NUMBERS) * rng.choice((1, 1, -1))
    return value


def _deep(levels: int) -> Any:
    found: Any = []
    for _ in range(levels):
        found = [found]
    return found


def _somewhere(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container within a value, and the key or number of one of its items."""
    while True:
        names: list[Any] = list(value) if _is(value, dict) else list(range(len(value)))
        last = rng.choice(names)
        inner: Any = value[last]
        if not _is(inner, dict, list) or not inner or rng.random() < 0.15:
            return value, last
        value = inner


def _is(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds)


KINDS: dict[str, tuple[Mutation, int]] = {
    "flip": (flip, 2),
    "cut": (cut, 1),
    "splice": (splice, 1),
    "zip_field": (zip_field, 3),
    "manifest_json": (manifest_json, 4),
    "program_json": (program_json, 6),
    "raw_json": (raw_json, 1),
    "func_text": (func_text, 1),
    "weights_head": (weights_head, 2),
    "member_names": (grafts.member_names, 2),
    "weights_beside": (grafts.weights_beside, 1),
    "signature": (grafts.signature, 1),
    "grafted_manifest": (grafts.grafted_manifest, 2),
    "grafted_program": (grafts.grafted_program, 4),
}
"""What is done to a file, and how often in relation to the others."""


def mutated(good: Good, seed: int, number: int) -> tuple[str, bytes]:
    """The file of this number, which is the same for the same seed, and what was done to it."""
    rng = random.Random(f"{seed}:{number}")
    names = list(KINDS)
    kind = rng.choices(names, [KINDS[name][1] for name in names])[0]
    return kind, KINDS[kind][0](good, rng)
