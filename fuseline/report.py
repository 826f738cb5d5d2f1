"""What a compilation did, as plain data: the sites, the kernels, the passes, and some numbers.

Nothing here imports another part of fuseline, so that every part may fill in its share.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, TypeAlias

from fuseline import report_tables as tables

SiteStatus: TypeAlias = Literal["fused", "missed"]
KernelStatus: TypeAlias = Literal["native", "library", "reference"]
ChosenBy: TypeAlias = Literal["model", "measurement", "table"]
Stat: TypeAlias = int | float | str

BREAK = "graph break: "
"""Begins the names of stats that say how often a graph ended for a reason."""

LEFT = "functions with graph breaks that run in eager as a whole"
"""The name of a statistic: where a graph would end within a loop, torch leaves all as it is."""

PLAIN = "plain ATen: "
"""Begins the names of stats that say why a graph is run by torch as a whole."""

LIMIT = "recompilations refused, see "
"""Begins the names of stats that say which option of torch refused to compile a function again."""

EAGER_CALLS = "calls run eagerly since then"
"""The number of calls that torch ran as they are, as none of the compiled graphs fitted."""

OP_BY_OP = "not run by its kernels, but op by op by torch: "
"""Begins the name of a statistic: why a program that was built for a GPU runs op by op."""

FROM_CACHE = "programs from the cache"
"""The number of programs that an earlier process compiled."""


@dataclass(frozen=True)
class Site:
    """One place in the model that looks like a known pattern.

    Attributes:
        pattern: what it looks like: ``qk_norm``, ``rope``, ``attention``, ``rms_norm``, ...
        where: module path, as from the module that was compiled, and source line in the user's
            program; where several modules share compiled code, the first one's.
        status: ``"fused"``, or ``"missed"``.
        reason: for a miss, the predicate that failed, with the values seen; else empty.
        kernel: symbol of the kernel that does the work of a fused site, the last of several; empty
            where torch does it, and for a miss.
        details: further facts, among them the parts swallowed by a larger fusion.
    """

    pattern: str
    where: str
    status: SiteStatus
    reason: str = ""
    kernel: str = ""
    details: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class PassRecord:
    """The runs of one pass: over one func after another, and often more than once over each.

    Attributes:
        name: of the pass.
        seconds: that all runs took together.
        removed: by how many ops funcs became shorter, over the runs in which they did.
        added: by how many ops funcs became longer, over the runs in which they did.
        changed: whether any run changed anything.
        runs: how many there were.
    """

    name: str
    seconds: float
    removed: int
    added: int
    changed: bool
    runs: int = 1


@dataclass(frozen=True)
class Option:
    """One way of doing an op that a choice was made from.

    Attributes:
        label: what sets it apart, as ``warps 8``.
        microseconds: what it takes, as estimated or measured; None where nobody has looked.
        note: why it cannot run, where that is so.
    """

    label: str
    microseconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """What runs for a range of sizes, and what it was chosen from.

    Attributes:
        sizes: the range, as ``2 to 16``, or ``all``.
        chosen: the label of what runs.
        by: ``"model"``, by estimates; ``"measurement"``; or ``"table"``, by an earlier one that the
            cache has.
        options: all of them, the likelier first.
        note: what else there is to say: why nothing was measured, say.
    """

    sizes: str
    chosen: str
    by: ChosenBy
    options: tuple[Option, ...]
    note: str = ""


@dataclass(frozen=True)
class KernelRecord:
    """One kernel of the plan.

    Attributes:
        symbol: the kernel's name in the generated code.
        family: its template: ``rms_norm``, ``gemv``, ...
        op: the IR op that it does.
        launches: how often one run of the plan calls it.
        origin: where in the user's program the op comes from (the first of the launches).
        status: ``"native"``; ``"library"`` where one of torch's libraries does it by choice; or
            ``"reference"`` where plain torch runs in its place.
        reason: why the kernel is not native; empty where it is.
        needs: registers, shared memory and warps, for a kernel of a GPU.
        target: what it was built for: ``cpu``, ``sm_90``, ...; empty where it was not built.
        resources: what was read from its machine code, for a kernel of a GPU: ``registers`` of a
            thread, bytes of ``shared_memory``, accesses of ``spills``, and of those in loops
            (``loop_spills``: a kernel that has any is not run), ``widest_load`` and
            ``widest_store`` in bits, and more.
        choices: what it was chosen from, by range of sizes, for a kernel of a GPU.
        sizes: those that it runs for, as ``s77: 2 to 16``; empty where it does for all.
        sources: all places that its ops come from, of all launches: those that differ only in
            numbers of their path (layers) are one, as ``layers.0..29.mlp (model.py:81)``.
    """

    symbol: str
    family: str
    op: str
    launches: int
    origin: str
    status: KernelStatus = "native"
    reason: str = ""
    needs: str = ""
    target: str = ""
    resources: Mapping[str, int] = field(default_factory=dict[str, int])
    choices: tuple[Choice, ...] = ()
    sizes: str = ""
    sources: tuple[str, ...] = ()


def span(size: object, least: int, most: int | None) -> str:
    """A range of a size in words, as in `Choice.sizes`."""
    if most is None:
        return f"{size}: {least} and up"
    return f"{size}: {least}" if least == most else f"{size}: {least} to {most}"


def joined_sizes(texts: Iterable[str]) -> str:
    """What several launches of a kernel run for: all sizes, where one of them does."""
    found = dict.fromkeys(part for text in texts for part in text.split("; "))
    return "" if "" in found else "; ".join(found)


@dataclass(frozen=True)
class GraphRecord:
    """The graphs of one program for one set of sizes, or why there are none.

    Attributes:
        program: its name.
        sizes: the value of each size and count; a count says what of.
        kind: ``exact`` for these sizes alone, ``bucket`` where they stand for smaller ones, too,
            and ``none`` where they run without graphs.
        calls: with these sizes, or with any that they stand for.
        replays: of the graphs.
        graphs: how many follow one another: 1, and one more for each step that is in none.
        bytes: of device memory for inputs and results; temporaries are shared by all graphs.
        seconds: that recording took.
        reason: why there are none.
    """

    program: str
    sizes: Mapping[str, int]
    kind: Literal["exact", "bucket", "none"]
    calls: int
    replays: int
    graphs: int
    bytes: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class CostRecord:
    """What one op moves and computes at least, in eager or as compiled.

    Attributes:
        form: ``eager``, for an op of the program as it was captured, or ``compiled``.
        module: its path.
        source: line in the user's program.
        op: what it is called.
        dtype: that it computes in: of its first operand.
        bytes: read and written, every operand and result once.
        flops: floating-point operations.
    """

    form: Literal["eager", "compiled"]
    module: str
    source: str
    op: str
    dtype: str
    bytes: int
    flops: int


def layer_of(module: str) -> str:
    """The path of the layer that a module is in: as far as its first number, or all of it."""
    parts = module.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])


@dataclass(frozen=True)
class NumericsRecord:
    """What `check_numerics` found of one rewrite: of its value that comes closest to being wrong.

    Attributes:
        number: of the rewrite, as `fuse_limit` counts; 0 for a pass over a whole func, for
            ``import``, which is the program before all passes, and for ``kernels``.
        rewrite: the pass; ``kernels`` for the outputs of the built program.
        where: module path and source line.
        value: the value, with its type.
        values: how many values were compared.
        same: whether all of them have the bits that eager gives.
        ulp: the error against float64, in units in the last place: of the difference's norm, over
            that of the value.
        eager_ulp: the same of eager.
        ratio: the error over eager's own; None where eager makes none.
        share: the error over the largest that is allowed; above 1 the rule is broken.
        unchecked: why values were not compared; empty where all were.
        graph: the program; numbers of rewrites begin anew in each.
    """

    number: int
    rewrite: str
    where: str
    value: str = ""
    values: int = 0
    same: bool = True
    ulp: float = 0.0
    eager_ulp: float = 0.0
    ratio: float | None = None
    share: float = 0.0
    unchecked: tuple[str, ...] = ()
    graph: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that is known about one or more compilations; prints as a readable table."""

    sites: tuple[Site, ...] = ()
    kernels: tuple[KernelRecord, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    stats: Mapping[str, Stat] = field(default_factory=dict[str, Stat])
    graphs: tuple[GraphRecord, ...] = ()
    costs: tuple[CostRecord, ...] = ()
    numerics: tuple[NumericsRecord, ...] = ()

    def count(self, pattern: str, status: SiteStatus | None = "fused") -> int:
        """How many sites of a pattern have a status; ``None`` counts every status."""
        return sum(site.pattern == pattern and status in (None, site.status) for site in self.sites)

    def __add__(self, other: Report) -> Report:
        """Both reports as one: equal kernels and passes are merged, and numbers added."""
        return Report(
            sites=self.sites + other.sites,
            kernels=_merge_kernels([*self.kernels, *other.kernels]),
            passes=_merge_passes([*self.passes, *other.passes]),
            stats=_merge_stats(self.stats, other.stats),
            graphs=self.graphs + other.graphs,
            costs=self.costs + other.costs,
            numerics=self.numerics + other.numerics,
        )

    def to_dict(self) -> dict[str, object]:
        """The report as dicts, lists, strings and numbers."""
        return asdict(self)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as a JSON object with a key for each field."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, missed: bool = False, full: bool = False) -> str:
        """All tables; with ``missed`` only the sites that were missed are listed, and with ``full``
        their details are whole.
        """
        parts = [
            self.summary(),
            self.sites_table(missed=missed, full=full),
            self.numerics_table(),
            tables.section("kernels", tables.kernel_rows(self.kernels)),
            tables.section("choices", tables.choice_rows(self.kernels)),
            tables.section("graphs", tables.graph_rows(self.graphs)),
            tables.section("passes", tables.pass_rows(self.passes)),
            self.cached_line(),
            tables.section(
                "stats", [[name, tables.number_text(value)] for name, value in self.stats.items()]
            ),
        ]
        return "\n\n".join(part for part in parts if part) or "nothing was compiled yet"

    def summary(self) -> str:
        """What runs natively and what torch runs: steps of plans, whole graphs, and around them."""
        lines = [*(n for n in self.stats if n.startswith(OP_BY_OP)), *self.outside()]
        if not self.kernels:
            return "\n".join(lines)
        native = sum(k.launches for k in self.kernels if k.status == "native")
        others = [k for k in self.kernels if k.status == "reference"]
        chosen = sum(k.launches for k in self.kernels if k.status == "library")
        libraries = f", {chosen} by torch's libraries" if chosen else ""
        idle = sum(int(n) for name, n in self.stats.items() if name.startswith(OP_BY_OP))
        head = "steps, as built" if idle and idle == self.stats.get("programs") else "steps"
        line = f"{head}: {native} native{libraries}, {sum(k.launches for k in others)} run by torch"
        counts = Counter[str]()
        for k in others:
            counts[k.symbol] += k.launches
        names = ", ".join(f"{name} x{n}" if n > 1 else name for name, n in counts.items())
        return "\n".join([f"{line} ({names})" if names else line, *lines])

    def outside(self) -> list[str]:
        """A line for each way in which torch runs what is in no compiled graph."""
        whole = {n.removeprefix(PLAIN): r for n, r in self.stats.items() if n.startswith(PLAIN)}
        lines = [f"not compiled, run by torch as a whole: {n} ({r})" for n, r in whole.items()]
        breaks = [n.removeprefix(BREAK) for n in self.stats if n.startswith(BREAK)]
        if breaks:
            many, left = self.stats.get("graph breaks", len(breaks)), int(self.stats.get(LEFT, 0))
            eager = "what is between graphs runs" if self.kernels or whole else "everything runs"
            if left and (self.kernels or whole):
                eager = f"what is between graphs and {left} function{'s' * (left > 1)} whole run"
            lines.append(f"graph breaks: {many}, and {eager} in eager ({'; '.join(breaks)})")
        limits = {n.removeprefix(LIMIT): c for n, c in self.stats.items() if n.startswith(LIMIT)}
        if limits:
            calls = self.stats.get(EAGER_CALLS, 0)
            refused = "; ".join(f"{count}, see {option}" for option, count in limits.items())
            told = f"recompilations refused: {refused}, and what they were for runs in eager"
            lines.append(f"{told}; calls run eagerly since then: {calls}")
        return lines

    def cached_line(self) -> str:
        """How many programs came from the cache, so that no pass ran on them; empty for none."""
        cached, programs = self.stats.get(FROM_CACHE, 0), self.stats.get("programs", 0)
        if not cached:
            return ""
        return f"from the cache, where no passes run: {cached} of {programs} programs"

    def kernels_table(self) -> str:
        """A line per kernel that was built: its target, what its machine code needs, the sites that
        it does the work of, and the place in the model that it was first made for.
        """
        built = [k for k in self.kernels if k.target]
        head = ["kernel", "target", "registers", "shared", "spills", "widest access"]
        rows = [
            [k.symbol, k.target, *tables.resource_cells(k), k.sizes or "all", *self._made_for(k)]
            for k in built
        ]
        head += ["sizes", "sites", "first place"]
        return tables.section("kernels", [head, *rows]) if built else ""

    def _made_for(self, kernel: KernelRecord) -> tuple[str, str]:
        counts = Counter(s.pattern for s in self.sites if s.kernel == kernel.symbol)
        sites = ", ".join(f"{name} x{n}" if n > 1 else name for name, n in counts.items())
        return sites or "-", kernel.origin

    @property
    def numbers_differ(self) -> bool:
        """Whether `check_numerics` found outputs of built programs that break the numbers rule."""
        return any(r.share > 1 for r in self.numerics)

    def numerics_table(self) -> str:
        """What `check_numerics` found: a line for each kind of rewrite, one for each site where
        anything but eager's bits came out, and what was not compared. Where there are several
        graphs, each site says in which it is.
        """
        if not self.numerics:
            return ""
        kinds: dict[str, list[NumericsRecord]] = {}
        for record in sorted(self.numerics, key=lambda r: r.rewrite == "kernels"):  # they are last
            kinds.setdefault(record.rewrite, []).append(record)
        head = ["", "", "same bits", "largest", "eager's", "ratio", "of allowed"]
        rows = [
            [name, f"x{len(g)}", tables.same_bits(g), *tables.largest_error(g)]
            for name, g in kinds.items()
        ]
        title = "numbers, in units in the last place against float64"
        other = [r for r in self.numerics if r.values and not r.same]
        several = len({r.graph for r in self.numerics}) > 1
        sites = [
            [
                *([r.graph] if several else []),
                *(tables.rewrite_number(r), r.rewrite, *tables.error_cells(r), r.where),
            ]
            for r in other
        ]
        reasons = Counter(why for r in self.numerics for why in r.unchecked)
        unchecked = [[f"x{n}", why] for why, n in reasons.items()]
        parts = (
            tables.section(title, [head, *rows]),
            tables.section("numbers by site: largest, eager's, ratio, of allowed", sites),
            tables.section("not compared", unchecked),
        )
        return "\n".join(part for part in parts if part)

    def sites_table(self, *, missed: bool = False, full: bool = False) -> str:
        """The sites alone: a line per pattern, then one per site, or per run of like sites.

        With ``missed`` the list has no others; the counts are those of all sites. With ``full``
        details are whole, and only sites that have the same ones share a line.
        """
        patterns = list(dict.fromkeys(site.pattern for site in self.sites))
        counts = [
            [name, f"{self.count(name)} fused", f"{self.count(name, 'missed')} missed"]
            for name in patterns
        ]
        listed = [s for s in self.sites if not missed or s.status == "missed"]
        return "\n".join(
            part
            for part in (
                tables.section("patterns", counts),
                tables.section("sites", tables.site_rows(listed, full=full)),
            )
            if part
        )


def _merge_kernels(records: Iterable[KernelRecord]) -> tuple[KernelRecord, ...]:
    merged: dict[tuple[str, str, str], KernelRecord] = {}
    for record in records:
        key = (record.symbol, record.status, record.target)
        seen = merged.get(key)
        if seen is None:
            merged[key] = record
            continue
        launches = seen.launches + record.launches
        choices = tuple(dict.fromkeys((*seen.choices, *record.choices)))
        sizes = joined_sizes((seen.sizes, record.sizes))
        sources = tuple(dict.fromkeys((*seen.sources, *record.sources)))
        merged[key] = replace(
            seen, launches=launches, choices=choices, sizes=sizes, sources=sources
        )
    return tuple(merged.values())


def _merge_passes(records: Iterable[PassRecord]) -> tuple[PassRecord, ...]:
    merged: dict[str, PassRecord] = {}
    for record in records:
        seen = merged.get(record.name)
        merged[record.name] = record if seen is None else _add_passes(seen, record)
    return tuple(merged.values())


def _add_passes(left: PassRecord, right: PassRecord) -> PassRecord:
    return PassRecord(
        name=left.name,
        seconds=left.seconds + right.seconds,
        removed=left.removed + right.removed,
        added=left.added + right.added,
        changed=left.changed or right.changed,
        runs=left.runs + right.runs,
    )


def _merge_stats(left: Mapping[str, Stat], right: Mapping[str, Stat]) -> dict[str, Stat]:
    merged = dict(left)
    for name, value in right.items():
        merged[name] = _add_stat(merged[name], value) if name in merged else value
    return merged


def _add_stat(left: Stat, right: Stat) -> Stat:
    if isinstance(left, str) or isinstance(right, str):
        return left if left == right else f"{left}, {right}"
    return left + right
