"""Look at the cache of built code, check it, clean it up, and take entries to other machines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fuseline.cli.arguments import add_json, add_options, options
from fuseline.cli.cache_files import add_export, add_import, export_entries, import_entries
from fuseline.cli.output import Output, columns
from fuseline.cli.units import age, bytes_text, entries_text, short, size
from fuseline.config import Config
from fuseline.errors import BAD_ARGUMENT

if TYPE_CHECKING:
    from fuseline.runtime.cache import Cache, Pruned, Why

EXAMPLE = """\
  fuseline cache list
  fuseline cache why row_norm
  fuseline cache prune --older-than 30d --max-size 2G
  fuseline cache export h100.zip --target sm_90"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands and their arguments."""
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    for name, summary in {
        "path": "print where the cache is",
        "list": "list the entries",
        "verify": "check every byte of every entry",
        "why": "say what tells an entry from others of its name, or what its key is made of",
        "prune": "remove entries that were not used for long, or do not fit a size",
        "clear": "remove everything",
        "export": "write entries to a file, to be imported on another machine",
        "import": "take over the entries of an exported file",
    }.items():
        action = actions.add_parser(name, help=summary, description=summary)
        add_options(action)
        add_json(action)
        if name == "why":
            action.add_argument("entry", help="the start of a key or a name, or a kind")
        if name == "prune":
            action.add_argument("--older-than", type=age, metavar="AGE", help="such as 12h or 30d")
            action.add_argument("--max-size", type=size, metavar="SIZE", help="such as 500M or 2G")
        if name == "export":
            add_export(action)
        if name == "import":
            add_import(action)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Do what the sub-command says; 1 if `verify` finds damage."""
    from fuseline.runtime.cache import Cache

    config = Config.of(options(arguments))
    cache = Cache.open(config.cache_dir, config.cache_base)
    match arguments.action:
        case "path":
            bases = [str(base) for base in cache.bases]
            out.result({"path": str(cache.root), "bases": bases}, str(cache.root))
        case "list":
            _list(cache, out)
        case "verify":
            return _verify(cache, out)
        case "why":
            _why(cache.why(arguments.entry), out)
        case "prune":
            _prune(cache, arguments, out)
        case "export":
            return export_entries(cache, arguments, out)
        case "import":
            import_entries(cache, arguments, out)
        case _:
            _removed(cache.clear(), out)
    return 0


def _list(cache: Cache, out: Output) -> None:
    found = sorted(cache.layered(), key=lambda item: (item[0].kind, item[0].name, item[0].key))
    data = [
        {
            "key": e.key,
            "kind": e.kind,
            "name": e.name,
            "path": str(e.path),
            "layer": str(layer.root),
            "bytes": e.size,
            "used": e.used,
        }
        for e, layer in found
    ]
    layers = [str(layer.root) for layer in cache.layers]
    rows = [
        [
            e.key[:12],
            e.kind,
            short(e.name),
            bytes_text(e.size),
            *[str(layer.root)] * bool(cache.bases),
        ]
        for e, layer in found
    ]
    total = f"{entries_text(len(found))}, {bytes_text(sum(e.size for e, _ in found))}"
    answer = {"path": str(cache.root), "layers": layers, "entries": data}
    out.result(answer, "\n".join([*_lines(rows), total]))


def _verify(cache: Cache, out: Output) -> int:
    with out.step(f"checking {cache.root}"):
        checked = list(cache.check())
    damages = [damage for damage in checked if damage is not None]
    data = {"entries": len(checked), "damaged": [damage.to_dict() for damage in damages]}
    text = f"checked {entries_text(len(checked))} in {cache.root}: {len(damages) or 'none'} damaged"
    out.result(data, "\n".join([*map(str, damages), text]))
    return 1 if damages else 0


def _why(answers: list[Why], out: Output) -> None:
    data = [
        {
            "key": why.entry.key,
            "kind": why.entry.kind,
            "name": why.entry.name,
            "factors": why.entry.factors,
            "nearest": why.nearest.key if why.nearest else None,
            "differences": [vars(difference) for difference in why.differences],
        }
        for why in answers
    ]
    lines = [line for why in _without_mirrored(answers) for line in _why_lines(why)]
    out.result({"entries": data}, "\n".join(lines))


def _without_mirrored(answers: list[Why]) -> list[Why]:
    """Of two entries that are nearest to one another, only the first: the other says the same."""
    told: dict[frozenset[str], Why] = {}
    for why in answers:
        told.setdefault(frozenset({why.entry.key, why.nearest.key if why.nearest else ""}), why)
    return list(told.values())


def _why_lines(why: Why) -> list[str]:
    from fuseline.runtime.cache import brief, flatten

    entry = why.entry
    head = f"{entry.kind} {entry.name}, {entry.key[:12]}"
    if why.nearest is None:
        rows = [[name, brief(value)] for name, value in flatten(entry.factors).items()]
        nothing = "the only one of its name, so there is nothing to compare. Its key is made of"
        return [f"{head}: {nothing}", *columns(rows).splitlines()]
    nearest = why.nearest.key[:12]
    others = (
        f"the only other one, {nearest},"
        if why.others == 1
        else (f"the nearest of {why.others} others, {nearest},")
    )
    return [f"{head}: {others} differs in", *(f"  {text}" for text in why.differences)]


def _prune(cache: Cache, arguments: argparse.Namespace, out: Output) -> None:
    if arguments.older_than is None and arguments.max_size is None:
        raise BAD_ARGUMENT.error(
            "of `cache prune`", found="no limit", expected="--older-than, --max-size, or both"
        )
    pruned = cache.prune(older_than=arguments.older_than, max_bytes=arguments.max_size)
    _removed(pruned, out)


def _removed(pruned: Pruned, out: Output) -> None:
    text = f"removed {entries_text(pruned.entries)}, {bytes_text(pruned.bytes)}"
    out.result({"entries": pruned.entries, "bytes": pruned.bytes}, text)


def _lines(rows: list[list[str]]) -> list[str]:
    return columns(rows, indent="").splitlines()
