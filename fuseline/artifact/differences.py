"""What changed between two builds: target by target, kernel by kernel, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from fuseline.artifact.inspecting import Facts, Opened

Status = Literal["same", "changed", "changed source", "changed binary only", "new", "gone"]

_ABOUT = ("schema", "fuseline", "model", "licence", "options")


def differences(one: Opened, other: Opened) -> Facts:
    """What is another in the second of two artifacts.

    A kernel has changed its source, or its binary only: by another compiler, or other options.
    One whose name is new and one whose name is gone are taken for one, where both are the only
    ones of their family for their place in the model.

    Raises:
        ArtifactError: FL1101 to FL1104, if one cannot be read, is damaged, or was changed.

    """
    ours, theirs = one.facts(), other.facts()
    found: Facts = {
        "one": ours["path"],
        "other": theirs["path"],
        "about": _about(ours, theirs),
        "targets": _targets(ours["targets"], theirs["targets"]),
        "native": _native(one, other),
        "weights": _weights(one, other),
    }
    changed = [*found["about"], *found["native"], *found["weights"]["changed"]]
    changed += [*found["weights"]["new"], *found["weights"]["gone"]]
    found["same"] = not changed and all(t["status"] == "same" for t in found["targets"])
    found["equal_manifests"] = one.digest == other.digest
    return found


def _about(ours: Facts, theirs: Facts) -> list[Facts]:
    """Versions, the command, the licence, the options."""
    one = {key: ours[key] for key in _ABOUT} | _prefixed(ours["made_with"])
    other = {key: theirs[key] for key in _ABOUT} | _prefixed(theirs["made_with"])
    names = dict.fromkeys((*one, *other))
    return [
        {"what": name, "one": one.get(name), "other": other.get(name)}
        for name in names
        if one.get(name) != other.get(name)
    ]


def _prefixed(made_with: Mapping[str, str]) -> Facts:
    return {f"made with {name}": text for name, text in made_with.items()}


def _targets(ours: list[Facts], theirs: list[Facts]) -> list[Facts]:
    one = {target["title"]: target for target in ours}
    other = {target["title"]: target for target in theirs}
    found: list[Facts] = []
    for title in dict.fromkeys((*one, *other)):
        if title not in other or title not in one:
            found.append(_alone(title, one.get(title), other.get(title)))
            continue
        found.append(_target(one[title], other[title]))
    return found


def _alone(title: str, ours: Facts | None, theirs: Facts | None) -> Facts:
    """A target that only one of the files has: its kernels and programs came or went with it."""
    one, other = ({} if t is None else _all_kernels(t) for t in (ours, theirs))
    programs = [p for t in (ours, theirs) if t is not None for p in t["programs"]]
    status = _presence(ours, theirs)
    return {
        "title": title,
        "status": status,
        "kernels": _kernels(one, other),
        "changes": [{"what": f"program {name}", "status": status} for name in programs],
    }


def _target(ours: Facts, theirs: Facts) -> Facts:
    kernels = _kernels(_all_kernels(ours), _all_kernels(theirs))
    changes = [
        {"what": f"{what} of the target", "one": ours[what], "other": theirs[what]}
        for what in ("machine", "features")
        if ours[what] != theirs[what]
    ]
    same_sources = all(kernel["status"] == "same" for kernel in kernels)
    for name in dict.fromkeys((*ours["libraries"], *theirs["libraries"])):
        one, other = ours["libraries"].get(name), theirs["libraries"].get(name)
        if (one and one["sha256"]) != (other and other["sha256"]):
            kind = "changed binary only" if same_sources and one and other else "changed"
            changes.append({"what": f"library of {name}", "status": kind})
    for name in dict.fromkeys((*ours["programs"], *theirs["programs"])):
        changes += _program(name, ours["programs"].get(name), theirs["programs"].get(name))
    changed = changes or any(kernel["status"] != "same" for kernel in kernels)
    return {
        "title": ours["title"],
        "status": "changed" if changed else "same",
        "kernels": kernels,
        "changes": changes,
    }


def _program(name: str, ours: Facts | None, theirs: Facts | None) -> list[Facts]:
    if ours is None or theirs is None:
        return [{"what": f"program {name}", "status": "new" if ours is None else "gone"}]
    found = [
        {"what": f"{what} of {name}", "one": ours[what], "other": theirs[what]}
        for what in ("takes", "gives", "inputs", "state", "results", "sizes", "memory", "steps")
        if ours[what] != theirs[what]
    ]
    found += [
        {"what": f"{what} of {name}", "status": "changed"}
        for what in ("plan", "func")
        if ours[what]["sha256"] != theirs[what]["sha256"]
    ]
    one, other = _sites(ours["sites"]), _sites(theirs["sites"])
    for place in dict.fromkeys((*one, *other)):
        if one.get(place) != other.get(place):
            what = f"site {place[0]} at {place[1]} of {name}"
            found.append({"what": what, "one": one.get(place), "other": other.get(place)})
    return found


def _sites(sites: Iterable[Facts]) -> dict[tuple[str, str, int], str]:
    """What became of each site; those of one kind at one place are told apart by their order."""
    found: dict[tuple[str, str, int], str] = {}
    for site in sites:
        number = 0
        while (key := (site["pattern"], site["where"], number)) in found:
            number += 1
        reason = f": {site['reason']}" if site["reason"] else ""
        found[key] = f"{site['status']}{reason}"
    return found


def _all_kernels(target: Facts) -> dict[str, Facts]:
    """The kernels of all programs for a target, by symbol; those that torch runs have no code."""
    return {
        kernel["symbol"]: kernel
        for program in target["programs"].values()
        for kernel in program["kernels"]
        if kernel["source"] or kernel.get("cubin") or kernel.get("ptx")
    }


def _kernels(ours: Mapping[str, Facts], theirs: Mapping[str, Facts]) -> list[Facts]:
    found: list[Facts] = []
    gone = {symbol: kernel for symbol, kernel in ours.items() if symbol not in theirs}
    fresh = {symbol: kernel for symbol, kernel in theirs.items() if symbol not in ours}
    pairs = _paired(gone, fresh)
    for symbol, kernel in ours.items():
        was: Facts = {"symbol": symbol, "family": kernel["family"], "origin": kernel["origin"]}
        if symbol in theirs:
            found.append({**was, "status": _status(kernel, theirs[symbol])})
        elif symbol in pairs:
            found.append({**was, "status": "changed source", "now": pairs[symbol]})
        else:
            found.append({**was, "status": "gone"})
    taken = set(pairs.values())
    for symbol, kernel in fresh.items():
        if symbol not in taken:
            now: Facts = {"symbol": symbol, "family": kernel["family"], "origin": kernel["origin"]}
            found.append({**now, "status": "new"})
    return found


def _paired(gone: Mapping[str, Facts], fresh: Mapping[str, Facts]) -> dict[str, str]:
    """The new name of each kernel that has another one, where there is no doubt."""
    one, other = _by_place(gone), _by_place(fresh)
    return {
        symbols[0]: other[place][0]
        for place, symbols in one.items()
        if len(symbols) == 1 and len(other.get(place, ())) == 1
    }


def _by_place(kernels: Mapping[str, Facts]) -> dict[tuple[str, str, str], list[str]]:
    found: dict[tuple[str, str, str], list[str]] = {}
    for symbol, kernel in kernels.items():
        found.setdefault((kernel["family"], kernel["op"], kernel["origin"]), []).append(symbol)
    return found


def _status(ours: Facts, theirs: Facts) -> Status:
    def digest(kernel: Facts, kind: str, of: str = "sha256") -> object:
        member: Any = kernel.get(kind)
        return member and member[of]

    if digest(ours, "source", "code") != digest(theirs, "source", "code"):
        return "changed source"
    binary = ("cubin", "ptx")
    if any(digest(ours, kind) != digest(theirs, kind) for kind in binary):
        return "changed binary only"
    return "same"


def _native(one: Opened, other: Opened) -> list[Facts]:
    """The runtime's own code, and what else is a member and of no target."""

    def own(opened: Opened) -> dict[str, str]:
        members = opened.manifest.members
        return {name: m.sha256 for name, m in members.items() if not _is_of_target(opened, name)}

    ours, theirs = own(one), own(other)
    return [
        {"what": name, "status": _presence(ours.get(name), theirs.get(name))}
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]


def _is_of_target(opened: Opened, name: str) -> bool:
    folders = ("programs/", "sources/", "binaries/")
    return name.startswith(folders) or name == opened.manifest.weights.member


def _presence(one: object, other: object) -> Status:
    if one is None or other is None:
        return "new" if one is None else "gone"
    return "changed"


def _weights(one: Opened, other: Opened) -> Facts:
    """Which tensors are others; where both files of weights have one digest, none is read."""
    if _whole(one) == _whole(other):
        same = len(one.manifest.weights.tensors)
        return {"same": same, "changed": [], "new": [], "gone": []}
    ours, theirs = one.tensors(), other.tensors()
    both = [name for name in ours if name in theirs]
    changed = [name for name in both if ours[name] != theirs[name]]
    return {
        "same": len(both) - len(changed),
        "changed": [{"name": name, "one": ours[name], "other": theirs[name]} for name in changed],
        "new": [name for name in theirs if name not in ours],
        "gone": [name for name in ours if name not in theirs],
    }


def _whole(opened: Opened) -> object:
    stored = opened.manifest.weights
    if stored.member is not None:
        digest = opened.manifest.members[stored.member].sha256
    else:
        assert stored.file is not None, "the manifest was checked"
        digest = stored.file[1].sha256
    return digest, dict(stored.tensors)


__all__ = ["differences"]
