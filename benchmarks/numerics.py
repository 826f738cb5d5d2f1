"""Holds every rewrite to float64 over tiny models of all families, and writes the page about it.

    python -m benchmarks.numerics                        # all of them, in float32 and bfloat16
    python -m benchmarks.numerics --only 'llama*' --output /tmp/numerics.json

Each model is compiled with `check_numerics`, and called with a prompt that fills a static cache and
then with one token; where it takes no such cache, with a prompt alone. The rewrites that only the
pipeline for GPUs has are checked on the same calls, without kernels. Results are written after
every model; those of earlier runs stay where ``--only`` leaves them out. The exit code is 1 where a
rewrite breaks the rule.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

import fuseline
from benchmarks.common import RESULTS, ROOT, Json, machine, read_json, say, versions, write_json
from benchmarks.subjects import Call, Subject, subjects
from fuseline.captures import Graphs
from fuseline.config import Config
from fuseline.debug.numerics import Numerics
from fuseline.errors import FuselineError
from fuseline.frontend.wrap import wrap
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline import default_pipeline
from fuseline.report import NumericsRecord
from fuseline.report_tables import worst

DEFAULT = RESULTS / "numerics.json"
PAGE = ROOT / "docs" / "numerics.md"
DTYPES = ("float32", "bfloat16")

TEXT = """\
# Numbers around each rewrite

```sh
fuseline explain smollm2 --length 9 --check-numerics
fuseline run my_module:make_model --check-numerics
```

or `fuseline.compile(model, check_numerics=True)`, or `FUSELINE_CHECK_NUMERICS=1`: at the first call
of each program its passes run once more, on the arguments of that call, and after every rewrite the
values that it replaces are compared with the float64 oracle. `report().numerics` has the outcome.

* The program as imported is evaluated twice, op by op by the ops' references: in its own types,
  which is what eager computes, and with every floating type widened to float64, inner casts
  included.
* After a rewrite only its new ops are evaluated, from eager's values, so that each rewrite is seen
  alone. Where it replaces what an earlier rewrite made, it is still compared with eager's value:
  errors do not add up unnoticed. Values that only rewrites know, such as a merged product, are
  followed to the next ones that eager has.
* The error is the norm of the difference over the norm of the float64 value. It may be `tolerance`
  (1.5) times eager's own, plus one unit in the last place. What only moves data must keep its bits;
  infinities, NaN, and the huge numbers of masks are compared by place; integers and booleans are
  eager's. A rewrite that breaks this ends the call with FL0410, which names its number, pass, site
  and value, both errors, and the option that turns it off.
* The rule is about whole values: eager's error grows from layer to layer, and what is allowed grows
  with it. A small error of a rewrite shows in the first layers that it is applied in, or in a model
  of one layer; and in float32 rather than in bfloat16, where the inputs of all that is computed in
  float32 inside (norms, routers) are off by thousands of its units already.
* What caches and other buffers hold in the end is compared, too, and what is read from them where
  the order of reads and writes may have changed.
* After that the built program runs, and the line `kernels` compares its results, and what it left
  in its arguments, with the same oracle. That line never raises: where two experts are all but
  equally good, rounding may choose the other one. The commands give 1 if it breaks the rule.
* What cannot be compared is listed with the reason: random numbers, an operator without a float64
  form (what follows it is compared from eager's value on), state of a latent cache.
* `fuseline.export` has no call to look at: it takes the model's own weights, and inputs seeded by
  type, indices in the range of what they index.
* Values of all ops are kept, in their own type and in float64: a model of a billion weights needs
  some gigabytes for that, and minutes. Without the option nothing of it is imported.

In Python, around passes of your own:

```python
from fuseline.debug.numerics import Numerics
from fuseline.debug.seeded import model_arguments
from fuseline.ir.text import parse_func
from fuseline.passes.manager import PassManager
from fuseline.passes.pipeline_text import parse_pipeline

func = parse_func(\"\"\"func @f(%x: bf16[B, 64], %r: bf16[B, 64], %w: bf16[64]) {
  %s = add %x, %r
  %y = rms_norm %s, %w {eps = 1e-06}
  return %y, %s
}\"\"\")
numerics = Numerics(func, model_arguments(func))
PassManager(parse_pipeline("fuse-add-rms-norm"), observers=[numerics]).run(func)
assert [(r.number, r.values, r.same) for r in numerics.records] == [(1, 2, True)]
```
"""

ABOUT = """\
Of {count} models: tiny seeded ones of the families that tests compile, one with adapters, and one
with a latent cache, in two types each. Rewrites for GPUs alone are checked without kernels. A model
is called with a prompt that fills a static cache, and with one token; those that take no such cache
with the prompt alone. Errors are in units in the last place against float64. Of each kind of
rewrite this is the one that is closest to what the rule allows, and its model; where all sites have
eager's bits, the largest error that they share with it. A dash: eager makes no error there. Units
are those of the value's own type: a float32 value inside of a bfloat16 model has errors of
thousands of them, by its inputs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check the models; 1 if a rewrite breaks the rule, or a model cannot be run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.numerics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of models")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--output", type=Path, default=DEFAULT)
    parser.add_argument("--page", action="store_true", help="only write the page, of what there is")
    args = parser.parse_args(argv)
    if args.page:
        PAGE.write_text(page(read_json(args.output)))
        return 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch, about the models' own code
    chosen = [
        (subject, dtype)
        for subject in subjects()
        for dtype in args.dtype
        if any(fnmatch.fnmatch(subject.name, pattern) for pattern in args.only)
    ]
    kept: Json = read_json(args.output)["models"] if args.output.exists() else {}
    results: Json = {
        "schema": 1,
        "command": " ".join(["python -m benchmarks.numerics", *(argv or sys.argv[1:])]),
        "machine": machine(),
        "versions": versions(),
        "models": kept,
    }
    failed = False
    with tempfile.TemporaryDirectory(prefix="fuseline-numerics-") as folder:
        for number, (subject, dtype) in enumerate(chosen, 1):
            name = subject.name
            say(f"{time.strftime('%H:%M:%S')} {number} of {len(chosen)}: {name} {dtype}")
            found = examined(subject, dtype, Path(folder) / "cache")
            failed |= bool(found["failures"])
            for failure in found["failures"]:
                say(f"  {failure}")
            results["models"][f"{name} {dtype}"] = found
            write_json(args.output, results)
    if args.output.resolve() == DEFAULT:
        PAGE.write_text(page(results))
    return 1 if failed else 0


def examined(subject: Subject, dtype: str, cache: Path) -> Json:
    """What the checks find of one model: by kind of rewrite, and what could not be compared."""
    records: list[NumericsRecord] = []
    failures: list[str] = []
    notes: list[str] = []
    for name, call in subject.calls:
        cast("Any", torch).compiler.reset()
        build = partial(subject.build, getattr(torch, dtype))  # each call begins with new caches
        if why := _refusal(build(), call):
            notes.append(f"{name}: {why}")
            continue
        model = build()
        fixed = {"check_numerics": True, "cache_dir": cache, "threads": 1}
        compiled: Any = fuseline.compile(model, config=Config.of({**fixed, **subject.options}))
        try:
            with torch.no_grad():
                call(model, compiled)
            records += compiled.report().numerics
            records += _for_a_gpu(build(), call, {r.rewrite for r in records}, subject.options)
        except FuselineError as error:
            failures.append(f"{name}: {error}")
        break
    kinds: dict[str, list[NumericsRecord]] = {}
    for record in records:
        kinds.setdefault(record.rewrite, []).append(record)
    unchecked = dict.fromkeys(why for r in records for why in r.unchecked)
    return {
        "kinds": {name: _summed(group) for name, group in kinds.items()},
        "unchecked": list(unchecked),
        "notes": notes,
        "failures": failures,
    }


def _for_a_gpu(
    model: Any, call: Call, known: Collection[str], options: Mapping[str, Any]
) -> list[NumericsRecord]:
    """What is found of the rewrites that only the pipeline for GPUs has.

    Raises:
        PassError: FL0410, for one that breaks the rule.

    """
    cast("Any", torch).compiler.reset()
    graphs = Graphs(Config.of(options))
    with torch.no_grad():
        call(model, wrap(model, lambda: graphs))
    records: list[NumericsRecord] = []
    for graph in graphs.found:
        if graph.arguments is not None:
            numerics = Numerics(graph.func, graph.arguments)
            passes = default_pipeline(cache_latents=options.get("cache") == "latent", on_gpu=True)
            PassManager(passes, observers=[numerics]).run(graph.func)
            records += [r for r in numerics.records if r.rewrite not in known]
    return records


def _refusal(model: Any, call: Call) -> str:
    """Why eager itself cannot be called like that; empty where it can."""
    try:
        with torch.no_grad():
            call(model, model)
    except Exception as error:  # whatever a model's own code raises
        return f"eager refuses it: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return ""


def _summed(group: Sequence[NumericsRecord]) -> Json:
    compared = [r for r in group if r.values]
    found: Json = {"sites": len(group), "compared": len(compared)}
    found["same"] = sum(r.same for r in compared)
    record = worst(group)
    return found | ({"worst": asdict(record)} if record else {})


# -- the page --------------------------------------------------------------------------------


def page(results: Json) -> str:
    """The page: how it works, and the largest error of each kind of rewrite."""
    models = results["models"]
    about = results["versions"]
    how = (
        f"`{results['command']}`, fuseline {about['fuseline']}, torch {about['torch']}, "
        f"transformers {about['transformers']}, {results['machine']['cpu']}, one thread; by model "
        "in [numerics.json](../benchmarks/results/numerics.json).\n"
    )
    parts = [
        TEXT,
        "## The largest error of each kind of rewrite\n",
        ABOUT.format(count=len(models)) + "\n",
        *_tables(models),
        *_lists(models),
        "## How this was found\n",
        how,
    ]
    return "\n".join(parts)


def _dtypes(models: Json) -> list[str]:
    return list(dict.fromkeys(name.split()[-1] for name in models))


def _tables(models: Json) -> Iterator[str]:
    for dtype in _dtypes(models):
        own = {name: found for name, found in models.items() if name.split()[-1] == dtype}
        yield f"### {dtype}\n"
        yield "| rewrite | sites | eager's bits | largest | eager's | ratio | of allowed | model |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
        yield from _rows(own)
        yield ""


def _rows(models: Json) -> Iterator[str]:
    names = dict.fromkeys(kind for found in models.values() for kind in found["kinds"])
    last = ("kernels",)
    for kind in (*sorted(set(names) - {"import", *last}), *(k for k in last if k in names)):
        groups = {m: f["kinds"][kind] for m, f in models.items() if kind in f["kinds"]}
        sites, same = (sum(g[key] for g in groups.values()) for key in ("compared", "same"))
        found = {m: g["worst"] for m, g in groups.items() if "worst" in g}
        if not found:
            continue
        model, record = max(found.items(), key=lambda p: (p[1]["share"], p[1]["ulp"]))
        ratio = "-" if record["ratio"] is None else f"{record['ratio']:.2f}"
        yield (
            f"| {kind} | {sites} | {same} "
            f"| {_units(record['ulp'])} | {_units(record['eager_ulp'])} "
            f"| {ratio} | {record['share']:.2f} | {model.split()[0]} |"
        )


def _units(error: float) -> str:
    return f"{error:.2f}" if error < 1000 else f"{error:.0f}"


def _lists(models: Json) -> Iterator[str]:
    titles = {
        "failures": "Rewrites that break the rule",
        "unchecked": "What was not compared",
        "notes": "What was not run",
    }
    for key, title in titles.items():
        found: dict[str, list[str]] = {}
        for name, of in models.items():
            for line in of[key]:
                found.setdefault(line, []).append(name)
        if found:
            yield f"### {title}\n"
            yield from (f"* {line} ({', '.join(names)})" for line, names in found.items())
            yield ""


if __name__ == "__main__":
    sys.exit(main())
