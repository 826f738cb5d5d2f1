"""Tables of results: the same rows for the terminal and for the page in the docs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.table import Table as RichTable

from benchmarks.common import Json

TITLES = {
    "smollm2": "SmolLM2-135M",
    "qwen3": "Qwen3, 4 layers",
    "deepseek_v3": "DeepSeek-V3, 4 layers",
    "tiny": "tiny Qwen3",
}
SHORT = {"float32": "f32", "bfloat16": "bf16"}
CASES = {
    "decode-1": "decode, batch 1",
    "decode-8": "decode, batch 8",
    "prefill-128": "prefill, 1 x 128",
}


_COMPARED = ("", "threads", "fuseline", "torch.compile", "eager", "x torch.compile", "x eager")


@dataclass(frozen=True)
class Table:
    """A title, a line that says what is in it, and rows of texts."""

    title: str
    about: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self, level: int = 2) -> str:
        """The table as a section of a page."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{'#' * level} {self.title}\n\n{self.about}\n\n{body}\n"

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for number, name in enumerate(self.header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def tables(results: Json) -> list[Table]:
    """All tables that there are results for."""
    makers = (_speed, _bandwidth, _compile, _stages, _memory, _qk_norm, _moe, _mla, _adapters)
    return [table for make in makers if (table := make(results)).rows]


def of_kind(results: Json, kind: str) -> Iterator[Json]:
    """The parts of a kind, in their order."""
    return (part for part in results["parts"].values() if part["kind"] == kind)


def commit_of(results: Json, part: Json) -> str:
    """The commit that a part was measured at."""
    return part.get("versions", results["versions"]).get("fuseline", "")


def _speed(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "speed"):
        for case, found in part["cases"].items():
            middle, ratio = found["median_s"], found["speedup"]
            rows.append(
                (
                    f"{_what(part)}, {CASES.get(case, case)}",
                    str(part["threads"]),
                    *(_ms(middle.get(name)) for name in ("fuseline", "torch.compile", "eager")),
                    *(_times(ratio.get(name)) for name in ("torch.compile", "eager")),
                    commit_of(results, part),
                )
            )
    return Table(
        "Decode and prefill",
        "Milliseconds of one call, the median; and how many times as long the others take.",
        (*_COMPARED, "commit"),
        tuple(rows),
    )


def _bandwidth(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "speed"):
        for case, found in part["cases"].items():
            middle, size = found["median_s"], found["weight_bytes"]
            if case != "decode-1" or "read" not in middle:
                continue
            rows.append(
                (
                    _what(part),
                    str(part["threads"]),
                    f"{size / 1e6:.0f} MB",
                    f"{size / middle['read'] / 1e9:.1f}",
                    *(
                        f"{size / middle[name] / 1e9:.1f} ({middle['read'] / middle[name]:.0%})"
                        if name in middle
                        else ""
                        for name in ("fuseline", "torch.compile", "eager")
                    ),
                    commit_of(results, part),
                )
            )
    return Table(
        "Weights streamed",
        "A decode step at batch 1 reads every weight once. Gigabytes of weights a second, beside a "
        "loop that does nothing but read as many bytes, sampled by turns with the others; in "
        "brackets the share of that.",
        ("", "threads", "weights", "reading alone", *_COMPARED[2:5], "commit"),
        tuple(rows),
    )


def _compile(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "compile"):
        ours, theirs = part["fuseline"], part["torch.compile"]
        cells: list[str] = [_what(part)]
        for state in ("cold", "warm"):
            mine, other = ours[state]["seconds"], theirs[state]["seconds"]
            cells += [f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.0%}"]
        rows.append((*cells, commit_of(results, part)))
    cold, warm = ("cold", "torch.compile", "share"), ("warm", "torch.compile", "share")
    return Table(
        "Compilation",
        "Seconds of the first decode step in a fresh process, less a later one: with empty caches "
        "(cold), and once more with the same caches (warm).",
        ("", *cold, *warm, "commit"),
        tuple(rows),
    )


def _stages(results: Json) -> Table:
    found = [
        (f"{_what(part)}, {state}", part["fuseline"][state]["stages_s"], commit_of(results, part))
        for part in of_kind(results, "compile")
        for state in ("cold", "warm")
    ]
    names = tuple(dict.fromkeys(name for _, stages, _ in found for name in stages))
    rows = tuple(
        (what, *(f"{stages[name]:.2f}" if name in stages else "" for name in names), commit)
        for what, stages, commit in found
    )
    return Table(
        "Where compilation goes",
        "Seconds of each stage of fuseline's; `trace` is what torch's Dynamo takes to trace the "
        "model and to set up its guards, and starting what is imported late; kernels are built "
        "while the guards are.",
        ("", *names, "commit"),
        rows,
    )


def _memory(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "memory"):
        for name in ("fuseline", "eager", "torch.compile"):
            found = part[name]
            rows.append(
                (
                    f"{_what(part)}, {name}",
                    *(_mb(found.get(key)) for key in ("weights", "peak", "running_peak")),
                    _mb(found.get("planned")),
                    commit_of(results, part),
                )
            )
    return Table(
        "Memory",
        "Resident megabytes of a process at its peak, over everything (compilation included) and "
        "while it runs a prefill and steps; `planned` are the buffers that fuseline's plans hold.",
        ("", "weights", "peak", "peak of running", "planned", "commit"),
        tuple(rows),
    )


def _qk_norm(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "qk_norm"):
        for tokens, found in part["tokens"].items():
            middle, ratio = found["median_s"], found["speedup"]
            ways = ("kernel", "inner", "outer")
            names = [f"{who} {way}" for way in ways for who in ("fuseline", "torch.compile")]
            rows.append(
                (
                    f"{SHORT[part['dtype']]}, {tokens} tokens",
                    str(part["threads"]),
                    *(_us(middle[name]) for name in (*names, "eager")),
                    *(_times(ratio[name]) for name in (*ways, "eager")),
                    _times(middle["torch.compile outer"] / middle["fuseline kernel"]),
                    commit_of(results, part),
                )
            )
    columns = [name for way in ("kernel", "inner", "outer") for name in (way, "torch.compile")]
    ratios = ("x kernel", "x inner", "x outer", "x eager", "call over kernel")
    return Table(
        "QK norm with RoPE",
        "Microseconds for 16 query and 8 key heads of 128. Kernel: what was generated, on buffers "
        "that are there; inner: what each compiler made, called directly; outer: the whole "
        "compiled function, Dynamo's guards included. Untimed calls before the timed ones see to "
        "it that all threads are awake. Call over kernel: torch.compile's function over our kernel "
        "alone.",
        ("", "threads", *columns, "eager", *ratios, "commit"),
        tuple(rows),
    )


def _moe(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "moe"):
        for tokens, found in part["tokens"].items():
            middle, ratio = found["median_s"], found["speedup"]
            forms = ("torch.compile gathered", "torch.compile grouped", "eager")
            rows.append(
                (
                    f"{SHORT[part['dtype']]}, {tokens} tokens",
                    str(part["threads"]),
                    *(_ms(middle.get(name)) for name in ("fuseline", "fuseline op", *forms)),
                    *(_times(ratio[name]) for name in ("fastest other", "op, fastest other")),
                    _times(ratio["beside, apart"]),
                    commit_of(results, part),
                )
            )
    return Table(
        "Mixture of experts",
        "Milliseconds of 32 experts of 512 (4 for a token) and a shared one, hidden 1024. Op: the "
        "one op `moe`, with eager's router before it. torch.compile has two traceable forms of the "
        "experts, eager loops over them; the last columns say how many times as long the fastest "
        "of these takes. Apart: the op with the shared branch in ops of its own, over the op that "
        "has it beside the experts.",
        (
            "",
            "threads",
            "fuseline",
            "op",
            "gathered",
            "grouped",
            "eager",
            "x others",
            "op: x others",
            "op: apart",
            "commit",
        ),
        tuple(rows),
    )


def _mla(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "mla"):
        for batch, found in part["batches"].items():
            middle, ratio = found["median_s"], found["speedup"]
            rows.append(
                (
                    f"{SHORT[part['dtype']]}, batch {batch}",
                    str(part["threads"]),
                    *(_ms(middle[name]) for name in ("fuseline", "torch.compile", "eager")),
                    *(_times(ratio[name]) for name in ("torch.compile", "eager")),
                    commit_of(results, part),
                )
            )
    return Table(
        "Latent attention",
        "Milliseconds of a decode step of multi-head latent attention over 2048 latents of 256, 16 "
        "heads of 64 + 32 and 64, spelled in the expanded form.",
        (*_COMPARED, "commit"),
        tuple(rows),
    )


def _adapters(results: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for part in of_kind(results, "adapters"):
        for active, found in part["active"].items():
            middle, ratio = found["median_s"], found["speedup"]
            names = ("fuseline", "torch.compile", "eager", "linear")
            rows.append(
                (
                    f"{SHORT[part['dtype']]}, {active} in use",
                    str(part["threads"]),
                    *(_us(middle[name]) for name in names),
                    *(_times(ratio[name]) for name in ("torch.compile", "eager")),
                )
            )
    return Table(
        "Adapters",
        "Microseconds of a linear of 1024 to 1024 with low-rank adapters, for 32 requests of one "
        "token for so many of 32 adapters of rank 16, spelled as gathered matrices. Linear: "
        "torch's product alone.",
        (
            *("", "threads", "fuseline", "torch.compile", "eager", "linear"),
            *("x torch.compile", "x eager"),
        ),
        tuple(rows),
    )


def _what(part: Json) -> str:
    layers = f", {part['layers']} of its layers" if "layers" in part else ""
    return f"{TITLES[part['model']]}{layers}, {SHORT[part['dtype']]}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:.2f}"


def _us(value: float) -> str:
    return f"{1e6 * value:.1f}"


def _mb(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.1f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def paragraphs(lines: Iterable[str]) -> str:
    """Lines with an empty one between each."""
    return "\n\n".join(lines)
