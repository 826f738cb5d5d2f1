"""Damaged and malicious artifacts with parts that the good one lacks: a target for GPUs, weights
beside the file, a signature, a language model, library calls, growth; all with hostile values.
"""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

from fuseline.artifact.manifest import MANIFEST, SIGNATURE

if TYPE_CHECKING:
    from tests.artifact.mutate import Good

WEIGHTS = "weights.safetensors"
NUMBERS = (0, 1, -1, 4, 63, 64, 2**31, 2**62, 2**63 - 1, -(2**63), 10**30)
FLOATS: tuple[Any, ...] = (
    *({"is": "float", "text": word} for word in ("nan", "inf", "-inf", "-nan", "1e999", "")),
    *(1e308, -1e308, 5e-324, -0.0, 10**400, "nan", None, True),
)
NAMES = (
    "", ".", "..", "/", "x/", "/x", "x//y", "./x", "x/../../y", "C:\\x", "x\\y", "~/x", "x\ny",
    "\u202e", "caf\u00e9", "cafe\u0301", "\ufb01", "\u0663", "\U0001f600", "\ud800", "a\0b",
    MANIFEST, SIGNATURE, "mutated.fuse", WEIGHTS, WEIGHTS.upper(), "CON",
    "/dev/zero", "/proc/self/mem", "dev/stdin", "x" * 255, "x" * 5000, "x/" * 2000 + "x",
    "__proto__", "__class__", "%s%n", "{0.__class__}",
)  # fmt: skip


def _number(rng: random.Random) -> int:
    return rng.choice(NUMBERS)


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES)


def member_names(good: Good, rng: random.Random) -> bytes:
    """A member of another name, which the manifest knows, or not; one twice; links and folders."""
    text = good.members[MANIFEST].decode()
    old = rng.choice([name for name in good.members if name != MANIFEST])
    new = _name(rng).encode("utf-8", "replace").decode()
    known, renamed, twice = rng.random() < 0.5, rng.random() < 0.7, rng.random() < 0.3
    if known:
        text = text.replace(json.dumps(old), json.dumps(new))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there already
        for name, data in {**good.members, MANIFEST: text.encode()}.items():
            info = zipfile.ZipInfo("x")
            info.filename = new if name == old and renamed else name
            info.external_attr = rng.choice((0, 0o120777 << 16, 0o040755 << 16, 0o010644 << 16))
            for _ in range(2 if name == old and twice else 1):
                file.writestr(info, data)
    return out.getvalue()


def weights_beside(good: Good, rng: random.Random) -> bytes:
    """Weights in a file beside, which may be the artifact itself, and is elsewhere."""
    manifest = json.loads(good.members[MANIFEST])
    size = rng.choice((len(good.data), _number(rng), manifest["members"][WEIGHTS]["size"]))
    member = {"is": "Member", "sha256": rng.choice(("0" * 64, "", "g" * 64)), "size": size}
    manifest["weights"]["file"] = [_name(rng), member]
    if rng.random() < 0.8:
        manifest["weights"]["member"] = None
    return good.with_members({}, manifest)


def signature(good: Good, rng: random.Random) -> bytes:
    """A signature that is none."""
    fields = {
        "algorithm": rng.choice(("ed25519", "ed25519", "none", _name(rng))),
        "public": rng.choice(("0" * 64, "0" * 63, "\u0663" * 64, "f" * 10_000, _name(rng))),
        "signature": rng.choice(("0" * 128, "z" * 128, _name(rng))),
    }
    text = json.dumps({"is": "Signature", **fields}).encode()
    text = rng.choice((text, text, text[: len(text) // 2], b"", b"[" * 3000, b"{}" + b" " * 5000))
    return good.with_more({SIGNATURE: text})


def grafted_manifest(good: Good, rng: random.Random) -> bytes:
    """A target for GPUs, whose kernels are other members, or a language model."""
    manifest = json.loads(good.members[MANIFEST])
    if rng.random() < 0.3:
        _text(manifest, rng)
        return good.with_members({}, manifest)
    for native in manifest["native"]:
        native["launcher"] = native["runner"]
    target = json.loads(json.dumps(manifest["targets"][0]))
    (program,) = target["programs"].values()
    steps = json.loads(good.members[program])["plan"]["steps"]
    target |= {"name": rng.choice(("sm_90", "sm_90", "sm_1", "sm_\u0663\u0663")), "isa": ""}
    target["kernels"] = {
        step["symbol"]: _kernel(step, program, rng) for step in steps if step["is"] == "NativeStep"
    }
    manifest["targets"].append(target)
    return good.with_members({}, manifest)


def _text(manifest: Any, rng: random.Random) -> None:
    numbers = {"batch": _number(rng), "length": _number(rng)}
    stop = [_number(rng) for _ in range(rng.choice((0, 1, 1000)))]
    token = rng.choice((None, MANIFEST, WEIGHTS, _name(rng)))
    manifest["text"] = {"is": "Text", **numbers, "stop": stop, "tokenizer": token}
    if rng.random() < 0.7:
        manifest["programs"] = ["prefill", "decode"]
        for target in manifest["targets"]:
            for kind in ("programs", "ir", "libraries"):
                (place,) = target[kind].values()
                target[kind] = dict.fromkeys(manifest["programs"], place)


def _kernel(step: Any, member: str, rng: random.Random) -> dict[str, Any]:
    parameters = ["*fp32"] * len(step["buffers"]) + ["i64"] * len(step["dims"]) + ["*i8"]
    kernel: dict[str, Any] = {"is": "CudaKernel", "cubin": member, "ptx": None, "warps": 4}
    kernel |= {"parameters": parameters, "shared_memory": 0, "waits": False}
    kernel |= {"resources": {"registers": 1}, "scratch": 0, "scratch_pointers": 1}
    if rng.random() < 0.1:
        kernel[rng.choice(("warps", "shared_memory", "scratch", "scratch_pointers"))] = _number(rng)
    if rng.random() < 0.05:
        kernel["cubin"] = _name(rng)
    if rng.random() < 0.05:
        kernel["parameters"] = parameters * rng.choice((0, 2, 1000))
    return kernel


def grafted_program(good: Good, rng: random.Random) -> bytes:
    """A program with parts of which the good one has none."""
    (name,) = [n for n in good.members if n.startswith("programs/") and n.endswith(".json")]
    program = json.loads(good.members[name])
    grafts = (_library, _growth, _variant, _inputs, _kernels, _trees, _ranges)
    for graft in rng.sample(grafts, rng.choice((1, 1, 2))):
        graft(program, rng)
    return good.with_members({name: json.dumps(program).encode()})


def _library(program: Any, rng: random.Random) -> None:
    words = ("transposed", "k", "dim", _name(rng))
    attributes: dict[str, Any] = {rng.choice(words): rng.choice((*FLOATS, 1))}
    views = program["plan"]["returns"]
    step: dict[str, Any] = {"is": "LibraryStep", "label": "x", "results": views}
    step |= {"name": rng.choice(("linear", "topk", "matmul", "sdpa", _name(rng)))}
    step |= {"when": rng.choice((None, ["B", 3, 1])), "operands": [*views, None]}
    step |= {"scratch": rng.choice((0, "B", -1)), "attributes": rng.choice(({}, attributes))}
    at = rng.randrange(len(program["plan"]["steps"]) + 1)
    program["plan"]["steps"].insert(at, step)
    program["owners"].insert(at, rng.choice((0, at, -1, 2**62)))


def _growth(program: Any, rng: random.Random) -> None:
    pad = {"is": "PadArg", "arg": _number(rng) % 9, "axis": _number(rng), "fill": _number(rng)}
    outer = rng.choice((0, "B", "B // 0"))
    axis = {"is": "RowAxis", "axis": 0, "outer": outer, "inner": 1}
    rule: dict[str, Any] = {"is": "PadRule", "args": [pad] * rng.choice((0, 1, 5000))}
    rule |= {"limits": rng.choice(([], ["B % 0", 2**62])), "returns": [[axis]] * 3}
    program["plan"]["pads"] = {rng.choice(("B", _name(rng))): rule}


def _variant(program: Any, rng: random.Random) -> None:
    spec: dict[str, Any] = {"is": "VariantSpec", "name": _name(rng), "args": []}
    spec |= {"symbol": rng.choice(("B", _name(rng))), "most": _number(rng)}
    program["plan"]["variants"] = [spec] * rng.choice((1, 900))


def _inputs(program: Any, rng: random.Random) -> None:
    if rng.random() < 0.5:
        item = rng.choice(program["inputs"])
        item |= {"kind": rng.choice(("count", "symbol", "constant", "user")), "name": _name(rng)}
    number = {"is": "Number", "input": _number(rng), "low": _number(rng), "high": _number(rng)}
    program["numbers"] = [number] * rng.choice((0, 1, 2000))
    program["complex"] = [_number(rng)] * rng.choice((0, 1, 2000))


def _kernels(program: Any, rng: random.Random) -> None:
    """What is only shown: of what a kernel was chosen, and what it needs."""
    record = rng.choice(program["kernels"])
    note = rng.choice(("", _name(rng).encode("utf-8", "replace").decode()))
    option: dict[str, Any] = {"is": "Option", "label": note, "note": note}
    option |= {"microseconds": rng.choice(FLOATS)}
    sizes = rng.choice(("B: 2 to 16", "9" * 5000, "B: 1 and up", "\u0663", ": 1 to ", note))
    choice: dict[str, Any] = {"is": "Choice", "chosen": note, "sizes": sizes, "note": note}
    choice |= {"by": rng.choice(("model", "table", "measurement", "rule"))}
    options, choices = rng.choice(((0, 1), (1, 1), (3, 1), (3000, 1), (1, 2000)))
    choice |= {"options": [option] * options}
    record["choices"] = [choice] * choices
    record["sizes"] = note
    shown = ("registers", "shared_memory", "spills", "widest_load", "widest_store")
    record["resources"] = dict.fromkeys(shown, _number(rng))


def _trees(program: Any, rng: random.Random) -> None:
    tree: dict[str, Any] = {"is": "Tree", "kind": "leaf", "keys": [], "children": []}
    tree["value"] = rng.choice(FLOATS)
    kind = rng.choice(("tuple", "list", "dict", "record", "constant"))
    for _ in range(rng.choice((1, 60, 70, 200, 400))):
        keys = [_name(rng)] if kind in ("dict", "record") else []
        tree = {"is": "Tree", "kind": kind, "keys": keys, "children": [tree], "value": None}
    holder = program[rng.choice(("gives", "takes"))]
    holder["children"] = [*holder["children"], tree] if rng.random() < 0.5 else [tree]


def _ranges(program: Any, rng: random.Random) -> None:
    plan = program["plan"]
    if rng.random() < 0.5:
        plan["ranges"] = {rng.choice(("B", _name(rng))): [_number(rng), _number(rng)]}
    native = rng.choice([step for step in plan["steps"] if step["is"] == "NativeStep"])
    native["when"] = [rng.choice(("B", "B**8", 7, "0")), _number(rng), _number(rng)]
    if rng.random() < 0.3:
        plan["steps"] += [native] * 2000
        program["owners"] += [rng.choice((0, 77))] * 2000
