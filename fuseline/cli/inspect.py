"""Show what an artifact holds, check it, or tell what changed between two. Nothing of it is run."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseline.cli.arguments import add_json
from fuseline.cli.output import Output, columns, printable
from fuseline.errors import BAD_ARGUMENT, FuselineError

if TYPE_CHECKING:
    from fuseline.artifact.inspecting import Facts, Opened

EXAMPLE = """\
  fuseline inspect model.fuse
  fuseline inspect model.fuse --verify --verify-key author.pem
  fuseline inspect model.fuse --at B=1 --at S=2048 --json
  fuseline inspect model.fuse --diff before.fuse"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .fuse file")
    parser.add_argument(
        "--verify", action="store_true", help="read every byte, and compare all digests"
    )
    parser.add_argument(
        "--verify-key",
        metavar="KEY",
        type=Path,
        help="a PEM file with a public key: refuse what it has not signed; implies --verify",
    )
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="tell what is another in FILE than in OTHER, and end with 1 if anything is",
    )
    parser.add_argument(
        "--at",
        metavar="NAME=SIZE",
        action="append",
        default=[],
        help="a size that memory is computed for (default: the greatest); may be repeated",
    )
    parser.add_argument("--full", action="store_true", help="every site, choice and member")
    add_json(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Print what is asked for; 1 if a digest is wrong, or two files differ.

    Raises:
        ArtifactError: FL1101 to FL1104, FL1111, FL1112.
        UsageError: FL0103, for a size that is none, or that no program has.
    """
    from fuseline.artifact.inspecting import Opened

    sizes = _sizes(arguments.at)
    opened = Opened.of(Path(arguments.file))
    if arguments.verify_key is not None:
        from fuseline.artifact.signing import verified

        with out.step("checking signature and digests"):
            verified(opened.archive, arguments.verify_key)
    if arguments.diff is not None:
        return _diff(Opened.of(Path(arguments.diff)), opened, out)
    wrong: list[FuselineError] = []
    verify = arguments.verify and arguments.verify_key is None
    if verify:
        with out.step("checking digests"):
            wrong = opened.wrong()
    if wrong:
        data = {"wrong": [error.diagnostic.to_dict() for error in wrong]}
        out.result(data, printable("\n".join(map(str, wrong))))
        return 1
    _known(sizes, opened)
    facts = opened.facts(sizes)
    facts["verified"] = arguments.verify or arguments.verify_key is not None
    facts["signed_by_key"] = arguments.verify_key is not None
    out.result(facts, printable(_text(facts, full=arguments.full)))
    return 0


def _sizes(given: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not (value.isascii() and value.isdigit()) or len(value) > 18:
            raise BAD_ARGUMENT.error("--at", found=repr(text), expected="NAME=SIZE")
        found[name] = int(value)
    return found


def _known(sizes: dict[str, int], opened: Opened) -> None:
    plans = [program.plan for program in opened.programs.values()]
    known = list(dict.fromkeys(name for plan in plans for name in plan.symbols))
    for name, value in sizes.items():
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "none: all sizes are fixed"
            raise BAD_ARGUMENT.error("--at", found=repr(name), expected=expected)
        for plan in plans:
            least, most = plan.ranges.get(name, (0, None))
            if name in plan.symbols and not least <= value <= (value if most is None else most):
                expected = f"{least} to {most}" if most is not None else f"{least} or more"
                raise BAD_ARGUMENT.error("--at", found=f"{name}={value}", expected=expected)


def size(number: int) -> str:
    """A size for people: 1.5 MB."""
    value = float(number)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


# -- what a file holds -----------------------------------------------------------------------------


def _text(facts: Facts, *, full: bool) -> str:
    parts = [_about(facts), _section("weights", _weights(facts["weights"]))]
    for target in facts["targets"]:
        needs = " ".join(target["features"])
        about = [target["machine"], f"needs {needs}" if needs else ""]
        parts.append(f"target {target['title']}\n{columns([[a] for a in about if a])}".rstrip())
        for name, program in target["programs"].items():
            parts += _program(f"{name} for {target['title']}", program, full=full)
    parts.append(_section("members", _members(facts, full=full)))
    return "\n\n".join(part for part in parts if part)


def _section(title: str, rows: list[list[str]]) -> str:
    return f"{title}\n{columns(rows)}" if rows else ""


def _about(facts: Facts) -> str:
    made = [f"{name} {text}" for name, text in facts["made_with"].items() if name != "command"]
    rows = [
        ["model", facts["model"]],
        ["licence", facts["licence"] or "not given"],
        ["written by", f"fuseline {facts['fuseline']}, {', '.join(made)}"],
        ["command", facts["made_with"].get("command", "not given")],
        ["manifest", f"schema {facts['schema']}, sha256:{facts['digest']}"],
        ["signature", _signature(facts)],
        ["digests", "all checked" if facts["verified"] else "not checked: --verify reads all"],
        *(["runs on", native] for native in _natives(facts)),
    ]
    return _section(f"{facts['path']}: {size(facts['bytes'])}", rows)


def _signature(facts: Facts) -> str:
    signature = facts["signature"]
    if signature is None:
        return "none"
    checked = "checked" if facts["signed_by_key"] else "not checked: --verify-key does"
    return f"{signature['algorithm']}, key {signature['fingerprint']}, {checked}"


def _natives(facts: Facts) -> list[str]:
    return [
        f"{native['machine']}{', GPUs' if native['launches_on_gpus'] else ''}; "
        f"Python extensions: {', '.join(native['bindings']) or 'none, by ctypes'}"
        for native in facts["native"]
    ]


def _weights(weights: Facts) -> list[list[str]]:
    where = f"{weights['in']}, beside the file" if weights["beside"] else weights["in"]
    rows = [[where, f"{weights['tensors']} tensors", size(weights["bytes"])]]
    for dtype, kind in weights["dtypes"].items():
        rows.append([f"  {dtype}", f"{kind['tensors']} stored", size(kind["bytes"])])
    return rows


def _program(title: str, program: Facts, *, full: bool) -> list[str]:
    memory, steps = program["memory"], program["steps"]
    at = ", ".join(f"{name}={value}" for name, value in memory["at"].items())
    rows = [["takes", program["takes"]], ["gives", program["gives"]]]
    rows += [["input", f"{i['name']}: {_type(i)}"] for i in program["inputs"]]
    rows += [["state", f"{i['name']}: {_type(i)}"] for i in program["state"]]
    rows += [["result", _type(result)] for result in program["results"]]
    rows += [["size", f"{n} in {s['least']}..{_end(s)}"] for n, s in program["sizes"].items()]
    rows.append(
        [
            "memory",
            f"{size(memory['arena'])} of temporaries and {size(memory['results'])} of results"
            + (f", where {at}" if at else "")
            + ", with one worker",
        ]
    )
    rows += [["temporary", expr] for expr in _counted(memory["temporaries"])] if full else []
    rows.append(
        [
            "steps",
            f"{steps['native']} native, {steps['library']} by libraries, {steps['torch']} by torch",
        ]
    )
    parts = [_section(title, rows), _section("kernels", _kernels(program["kernels"]))]
    parts.append(_section("sites", _sites(program["sites"], full=full)))
    if full:
        parts.append(_section("choices", _choices(program["kernels"])))
    return parts


def _end(limits: Facts) -> str:
    return "" if limits["most"] is None else str(limits["most"])


def _type(item: Facts) -> str:
    if item["dtype"] == "int":
        return f"int {item['value']}"
    return f"{item['dtype']}[{', '.join(map(str, item['shape']))}]"


def _counted(texts: Sequence[str]) -> list[str]:
    return [
        f"{n} x {text} bytes" if n > 1 else f"{text} bytes" for text, n in Counter(texts).items()
    ]


_HEAD = ["kernel", "registers", "shared", "spills", "widest access", "code", "for"]


def _kernels(kernels: Sequence[Facts]) -> list[list[str]]:
    rows: list[list[str]] = []
    for kernel in kernels:
        has, code = kernel["resources"], kernel.get("cubin") or kernel.get("ptx")
        widest = max(has["widest_load"], has["widest_store"]) if has else 0
        told = f"{kernel['status']}: {kernel['reason']}".removesuffix(": ")
        by = "" if kernel["status"] == "native" else f" ({told})"
        rows.append(
            [
                kernel["symbol"],
                *(str(has.get(what, "-")) for what in ("registers", "shared_memory", "spills")),
                f"{widest} bits" if has else "-",
                size(code["size"]) if code else "-",
                f"{kernel['op']} at {kernel['origin']}{by}",
            ]
        )
    return [_HEAD, *rows] if rows else []


def _sites(sites: Sequence[Facts], *, full: bool) -> list[list[str]]:
    """Every site, or how many there are of each kind and outcome."""
    if full:
        return [[s["status"], s["pattern"], s["where"], s["reason"]] for s in sites]
    counts = Counter((s["status"], s["pattern"], s["reason"]) for s in sites)
    return [[status, f"{pattern} x{n}", why] for (status, pattern, why), n in counts.items()]


def _choices(kernels: Sequence[Facts]) -> list[list[str]]:
    """What kernels were chosen from."""
    return [
        [kernel["symbol"], choice["sizes"], f"{choice['chosen']} by {choice['by']}", _rest(choice)]
        for kernel in kernels
        for choice in kernel["choices"]
    ]


def _rest(choice: Facts) -> str:
    others = [
        f"{option['label']} {option['note'] or _time(option['microseconds'])}".strip()
        for option in choice["options"]
    ]
    return f"of {', '.join(others)}{'; ' if choice['note'] else ''}{choice['note']}"


def _time(microseconds: float | None) -> str:
    return "" if microseconds is None else f"{microseconds:.3g} us"


def _members(facts: Facts, *, full: bool) -> list[list[str]]:
    """Every member with its digest, or how many each folder has."""
    members: dict[str, Facts] = facts["members"]
    if full:
        return [[name, str(m["size"]), m["sha256"]] for name, m in members.items()]
    folders: dict[str, list[int]] = {}
    for name, member in members.items():
        top = name.rpartition("/")[0] or name
        folders.setdefault(top, []).append(member["size"])
    return [[top, str(len(sizes)), size(sum(sizes))] for top, sizes in folders.items()]


# -- what changed ----------------------------------------------------------------------------------


def _diff(before: Opened, now: Opened, out: Output) -> int:
    from fuseline.artifact.differences import differences

    with out.step("comparing"):
        found = differences(before, now)
    out.result(found, printable(_difference(found)))
    return 0 if found["same"] else 1


def _difference(found: Facts) -> str:
    if found["same"]:
        return f"{found['other']} holds what {found['one']} does"
    parts = [f"{found['other']}, compared with {found['one']}"]
    parts.append(_section("about", [_changed(change) for change in found["about"]]))
    for target in found["targets"]:
        kernels: list[Facts] = target["kernels"]
        counts = Counter(kernel["status"] for kernel in kernels)
        told = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none"
        rows = [["kernels", told]]
        rows += [
            [k["status"], f"{k['symbol']}{' -> ' * ('now' in k)}{k.get('now', '')}", k["origin"]]
            for k in kernels
            if k["status"] != "same"
        ]
        rows += [_changed(change) for change in target["changes"]]
        width = max(map(len, rows))
        rows = [[*row, *[""] * (width - len(row))] for row in rows]
        parts.append(_section(f"target {target['title']}: {target['status']}", rows))
    parts.append(_section("other members", [_changed(change) for change in found["native"]]))
    weights = found["weights"]
    rows = [["same", str(weights["same"])]]
    rows += [["changed", _tensor(change)] for change in weights["changed"]]
    rows += [[status, name] for status in ("new", "gone") for name in weights[status]]
    parts.append(_section("weights", rows))
    return "\n\n".join(part for part in parts if part)


def _changed(change: Facts) -> list[str]:
    if "status" in change:
        return [change["status"], change["what"]]
    return ["changed", f"{change['what']}: {_short(change['one'])} -> {_short(change['other'])}"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _tensor(change: Facts) -> str:
    one, other = change["one"], change["other"]
    if _type(one) != _type(other):
        return f"{change['name']}: {_type(one)} -> {_type(other)}"
    return f"{change['name']}: {_type(one)}, sha256:{one['sha256'][:16]} -> {other['sha256'][:16]}"
