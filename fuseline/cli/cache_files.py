"""`fuseline cache export` and `fuseline cache import`: entries of the cache in one file."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fuseline.cli.output import Output, Show, columns
from fuseline.cli.units import age, bytes_text, entries_text, short, size
from fuseline.config import Target
from fuseline.errors import CACHE_UNKNOWN_ENTRY

if TYPE_CHECKING:
    from fuseline.runtime.cache import Cache
    from fuseline.runtime.cache.exporting import Report
    from fuseline.runtime.cache.incoming import Incoming

EXPORT_EXAMPLE = """\
example:
  fuseline cache export kernels.zip
  fuseline cache export h100.zip --target sm_90 --since 7d"""
IMPORT_EXAMPLE = """\
example:
  fuseline cache import kernels.zip --dry-run
  fuseline cache import kernels.zip

Entries are code that runs in your processes: import files of those whom you trust."""

_MOST = "64G"
_TARGETS = [target for target in get_args(Target) if target != "auto"]


def add_export(action: argparse.ArgumentParser) -> None:
    """Declare the arguments of `cache export`."""
    action.formatter_class = argparse.RawDescriptionHelpFormatter
    action.epilog = EXPORT_EXAMPLE
    action.add_argument("file", metavar="FILE", type=Path, help="the file to write")
    action.add_argument(
        "--kind", action="append", default=[], metavar="KIND", help="only this kind, such as cubin"
    )
    action.add_argument(
        "--target",
        action="append",
        default=[],
        choices=_TARGETS,
        help="leave out what was built for others; what serves all targets stays in",
    )
    action.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only names that fit, such as 'row_norm*'",
    )
    action.add_argument(
        "--since", type=age, metavar="AGE", help="only what was used within 12h or 30d, say"
    )


def add_import(action: argparse.ArgumentParser) -> None:
    """Declare the arguments of `cache import`."""
    action.formatter_class = argparse.RawDescriptionHelpFormatter
    action.epilog = IMPORT_EXAMPLE
    action.add_argument("file", metavar="FILE", type=Path, help="what `cache export` has written")
    action.add_argument(
        "--dry-run",
        action="store_true",
        help="check the file, say what is in it, and write nothing",
    )
    action.add_argument(
        "--max-size",
        type=size,
        metavar="SIZE",
        default=size(_MOST),
        help=f"refuse a file that holds more (default: {_MOST})",
    )


def export_entries(cache: Cache, arguments: argparse.Namespace, out: Output) -> int:
    """Write the file; 1 if an entry is damaged, and so was left out.

    Raises:
        CacheError: FL0607 where no entry is meant; as `exporting.export_to`.
    """
    from fuseline.runtime.cache.exporting import export_to
    from fuseline.runtime.cache.selection import Selection

    selection = Selection(
        tuple(arguments.kind), tuple(arguments.target), tuple(arguments.name), arguments.since
    )
    meant = selection.of(cache.entries())
    if not meant:
        asked = f"that matches {selection}" if str(selection) else "to export"
        raise CACHE_UNKNOWN_ENTRY.error(asked, where=str(cache.root))
    with out.step(f"writing {arguments.file}") as show:
        done = export_to(arguments.file, meant, _counting(show))
    damaged = [*cache.unlisted(), *done.damaged]
    for damage in damaged:
        out.note(str(damage))
    kinds = Counter(entry.kind for entry in done.entries)
    data: dict[str, object] = {
        "file": str(arguments.file),
        "entries": len(done.entries),
        "bytes": done.bytes,
        "kinds": dict(sorted(kinds.items())),
        "damaged": [damage.to_dict() for damage in damaged],
    }
    listed = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    count = f"{entries_text(len(done.entries))}, {bytes_text(done.bytes)}"
    out.result(data, f"wrote {arguments.file}: {count} ({listed or 'none'})")
    return 1 if damaged else 0


def import_entries(cache: Cache, arguments: argparse.Namespace, out: Output) -> None:
    """Take over what is new; with `--dry-run`, list what is in the file.

    Raises:
        CacheError: as `importing.import_from`.
    """
    from fuseline.runtime.cache.importing import import_from

    dry = bool(arguments.dry_run)
    with out.step(f"{'checking' if dry else 'importing'} {arguments.file}") as show:
        done = import_from(
            arguments.file,
            cache,
            dry_run=dry,
            most_bytes=arguments.max_size,
            report=_counting(show),
        )
    total = sum(entry.size for entry in done.new)
    data: dict[str, object] = {
        "file": str(arguments.file),
        "path": str(cache.root),
        "dry_run": dry,
        "imported": 0 if dry else len(done.new),
        "present": len(done.present),
        "bytes": total,
        "entries": [_described(entry) for entry in (*done.new, *done.present)],
    }
    verb = "would import" if dry else "imported"
    text = f"{verb} {entries_text(len(done.new))}, {bytes_text(total)}, to {cache.root}"
    known = f"; {entries_text(len(done.present))} there already" if done.present else ""
    rows = [*_rows(done.new, "new"), *_rows(done.present, "there already")] if dry else []
    out.result(data, "\n".join([*columns(rows, indent="").splitlines(), text + known]))


def _counting(show: Show) -> Report:
    return lambda done, total: show(f"{done} of {entries_text(total)}")


def _described(entry: Incoming) -> dict[str, object]:
    return {
        "key": entry.key,
        "kind": entry.kind,
        "name": entry.name,
        "bytes": entry.size,
        "present": entry.present,
    }


def _rows(entries: Sequence[Incoming], state: str) -> list[list[str]]:
    return [[e.key[:12], e.kind, short(e.name), bytes_text(e.size), state] for e in entries]
