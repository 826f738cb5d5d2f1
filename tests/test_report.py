"""Reports: counting, merging, the table, and JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from fuseline import KernelRecord, PassRecord, Report, Site
from fuseline.report import GraphRecord, NumericsRecord, span

FUSED = Site("qk_norm", "layers.0.self_attn (m.py:10)", "fused", kernel="qk_norm_rope_ab12")
MISSED = Site("qk_norm", "layers.1.self_attn (m.py:10)", "missed", reason="q has 3 readers")
NORM = Site("rms_norm", "norm (m.py:40)", "fused", details={"eps": "1e-06"})
KERNEL = KernelRecord("rms_norm_01", "rms_norm", "rms_norm", 2, "norm (m.py:40)")


def report() -> Report:
    return Report(
        sites=(FUSED, MISSED, NORM),
        kernels=(KERNEL,),
        passes=(PassRecord("cse", 0.25, 2, 0, changed=True),),
        stats={"graph_breaks": 1, "compile_seconds": 0.5, "target": "cpu"},
    )


def test_count() -> None:
    assert report().count("qk_norm") == 1
    assert report().count("qk_norm", status="missed") == 1
    assert report().count("qk_norm", status=None) == 2
    assert report().count("moe") == 0


def test_reports_add_up() -> None:
    both = report() + report()
    assert len(both.sites) == 6
    assert [(k.symbol, k.launches) for k in both.kernels] == [("rms_norm_01", 4)]
    assert both.passes == (PassRecord("cse", 0.5, 4, 0, changed=True, runs=2),)
    assert both.stats == {"graph_breaks": 2, "compile_seconds": 1.0, "target": "cpu"}


def test_adding_nothing_changes_nothing() -> None:
    assert report() + Report() == report()


def test_a_kernel_that_runs_both_ways_is_listed_twice() -> None:
    plain = KernelRecord("rms_norm_01", "rms_norm", "rms_norm", 1, "x", "reference", "no compiler")
    assert len((report() + Report(kernels=(plain,))).kernels) == 2


def test_json_holds_everything() -> None:
    data = json.loads(report().to_json())
    assert set(data) == {"sites", "kernels", "passes", "stats", "graphs", "costs", "numerics"}
    assert data["sites"][1]["reason"] == "q has 3 readers"
    assert data["sites"][2]["details"] == {"eps": "1e-06"}
    assert data["kernels"][0]["launches"] == 2


def test_table_names_sites_and_reasons() -> None:
    assert str(report()) == "\n".join(
        [
            "steps: 2 native, 0 run by torch",
            "",
            "patterns",
            "  qk_norm   1 fused  1 missed",
            "  rms_norm  1 fused  0 missed",
            "sites",
            "  fused   qk_norm     layers.0.self_attn (m.py:10)",
            "  missed  qk_norm     layers.1.self_attn (m.py:10)  q has 3 readers",
            "  fused   rms_norm    norm (m.py:40)                eps: 1e-06",
            "",
            "kernels",
            "  native  rms_norm_01  x2  rms_norm  norm (m.py:40)",
            "",
            "passes",
            "  cse    250.0 ms  -2 ops",
            "",
            "stats",
            "  graph_breaks     1",
            "  compile_seconds  0.5",
            "  target           cpu",
        ]
    )


def test_a_list_of_misses_has_the_counts_of_all_sites() -> None:
    found = report()
    assert found.sites_table(missed=True).splitlines() == [
        "patterns",
        "  qk_norm   1 fused  1 missed",
        "  rms_norm  1 fused  0 missed",
        "sites",
        "  missed  qk_norm    layers.1.self_attn (m.py:10)  q has 3 readers",
    ]
    assert found.sites_table(missed=True) in found.text(missed=True)


def test_passes_say_how_often_they_ran_and_what_came_of_it() -> None:
    shrank = PassRecord("cse", 0.25, 2, 0, changed=True)
    records = (
        shrank,
        PassRecord("canonicalize", 0.5, 0, 0, changed=True),
        PassRecord("dce", 0.5, 0, 0, changed=False),
        PassRecord("cse", 0.25, 0, 1, changed=True),
    )
    both = Report(passes=records) + Report(passes=(shrank,))
    assert str(both).splitlines() == [
        "passes",
        "  cse           x3  750.0 ms  -4 +1 ops",
        "  canonicalize      500.0 ms  as many ops",
    ]


def test_steps_that_torch_runs_are_counted_and_named() -> None:
    others = [
        KernelRecord("aten.sort.stable", "", "aten_call", 2, "router", "reference", "no lowering"),
        KernelRecord("aten.sort.stable", "", "aten_call", 1, "router", "reference", "f64"),
        KernelRecord("topk", "", "topk", 1, "router", "reference", "no lowering"),
    ]
    line = str(Report(kernels=(KERNEL, *others))).splitlines()[0]
    assert line == "steps: 2 native, 4 run by torch (aten.sort.stable x3, topk)"


def test_kernels_that_do_not_run_here_are_said_not_to() -> None:
    why = "not run by its kernels, but op by op by torch: built for sm_90, tensors on the cpu"
    apart = Report(kernels=(KERNEL,), stats={"programs": 1, why: 1})
    assert str(apart).splitlines()[:2] == ["steps, as built: 2 native, 0 run by torch", why]
    both = apart + Report(kernels=(KERNEL,), stats={"programs": 1})
    assert str(both).splitlines()[:2] == ["steps: 4 native, 0 run by torch", why]


def test_breaks_and_what_is_not_compiled_stand_in_the_first_lines() -> None:
    broken = Report(stats={"graph breaks": 3, "graph break: branch": 2, "graph break: item": 1})
    line = "graph breaks: 3, and what is between graphs runs in eager (branch; item)"
    assert str(Report(kernels=(KERNEL,)) + broken).splitlines()[:2] == [
        "steps: 2 native, 0 run by torch",
        line,
    ]
    assert str(broken).startswith("graph breaks: 3, and everything runs in eager (branch; item)")


def test_calls_past_a_limit_of_torch_stand_in_the_first_lines() -> None:
    stats = {"recompilations refused, see torch.limit": 2, "calls run eagerly since then": 5}
    line = "recompilations refused: 2, see torch.limit, and what they were for runs in eager"
    line += "; calls run eagerly since then: 5"
    found = Report(kernels=(KERNEL,), stats={"graph breaks": 0, **stats})
    assert found.summary().splitlines() == ["steps: 2 native, 0 run by torch", line]
    assert Report(stats=stats).summary() == line


def test_like_layers_share_a_line() -> None:
    sites = tuple(
        Site("moe", f"model.layers.{i}.mlp.2 (m.py:7)", "missed" if i == 3 else "fused")
        for i in range(6)
    )
    assert Report(sites=sites).sites_table().splitlines()[3:] == [
        "  fused   moe  x5  model.layers.0..5.mlp.2 (m.py:7)",
        "  missed  moe      model.layers.3.mlp.2 (m.py:7)",
    ]


def test_graphs_are_listed_by_size() -> None:
    recorded = GraphRecord("main", {"S": 16}, "bucket", 9, 8, 1, 4096, 0.025)
    plain = GraphRecord("main", {"S": 900}, "none", 3, 0, 0, 0, 0.0, "more than 512 tokens")
    both = Report(graphs=(recorded,)) + Report(graphs=(plain,))
    assert str(both).splitlines() == [
        "graphs",
        "  bucket  main  S=16   9 calls  8 replays of 1, 4096 bytes, 25 ms",
        "  none    main  S=900  3 calls  more than 512 tokens",
    ]
    assert json.loads(both.to_json())["graphs"][0]["sizes"] == {"S": 16}


def test_empty_report_says_so() -> None:
    assert str(Report()) == "nothing was compiled yet"


def test_like_sites_show_the_details_that_all_of_them_have() -> None:
    sites = tuple(
        Site("qk_norm", f"layers.{i}.attn", "fused", details={"heads": "8", "number": str(i)})
        for i in range(2)
    )
    last = Report(sites=sites).sites_table().splitlines()[-1]
    assert last == "  fused  qk_norm  x2  layers.0..1.attn  heads: 8"


def test_long_details_are_cut_in_the_table_only() -> None:
    site = Site("moe", "mlp", "fused", details={"router": "x" * 300})
    found = Report(sites=(site,))
    assert found.sites_table().splitlines()[-1].endswith(f"router: {'x' * 89}...")
    assert json.loads(found.to_json())["sites"][0]["details"] == {"router": "x" * 300}
    assert found.text(full=True).splitlines()[-1].endswith(f"  router: {'x' * 300}")


def test_a_full_table_has_every_detail() -> None:
    details = ({"heads": "8"}, {"heads": "8"}, {"heads": "8", "scale": "y" * 100})
    sites = [Site("qk_norm", f"layers.{i}.attn", "fused", details=d) for i, d in enumerate(details)]
    missed = Site("moe", "mlp", "missed", reason="no kernel", details={"experts": "4"})
    assert Report(sites=(*sites, missed)).sites_table(full=True).splitlines()[4:] == [
        "  fused   qk_norm  x2  layers.0..1.attn  heads: 8",
        f"  fused   qk_norm      layers.2.attn     heads: 8; scale: {'y' * 100}",
        "  missed  moe          mlp               no kernel; experts: 4",
    ]


def test_sizes_of_kernels_that_are_one() -> None:
    """A kernel that one program runs for all sizes, is not one for some."""
    assert [span("s", 1, 1), span("s", 2, 8), span("s", 9, None)] == [
        "s: 1",
        "s: 2 to 8",
        "s: 9 and up",
    ]
    few, many, both = (replace(KERNEL, sizes=s) for s in ("s: 1", "s: 2 to 8; s: 9 and up", ""))
    assert (Report(kernels=(few,)) + Report(kernels=(many, few))).kernels[0].sizes == (
        "s: 1; s: 2 to 8; s: 9 and up"
    )
    assert (Report(kernels=(few,)) + Report(kernels=(both,))).kernels[0].sizes == ""
    row = str(Report(kernels=(few,))).splitlines()[-1]
    assert row == "  native  rms_norm_01  x2  rms_norm (s: 1)  norm (m.py:40)"


def test_kernels_table_has_the_needs_and_the_sites_of_each_kernel() -> None:
    needs = {"registers": 32, "shared_memory": 512, "spills": 0}
    needs |= {"widest_load": 128, "widest_store": 64}
    gpu = replace(KERNEL, symbol="qk_norm_rope_ab12", target="sm_90", resources=needs, sizes="s: 2")
    cpu = replace(KERNEL, target="cpu")
    table = Report((FUSED, FUSED, NORM), (gpu, cpu, replace(KERNEL, status="library")))
    rows = [" | ".join(re.split("  +", x.strip())) for x in table.kernels_table().splitlines()]
    head = "kernel | target | registers | shared | spills | widest access"
    assert rows == [
        "kernels",
        f"{head} | sizes | sites | first place",
        "qk_norm_rope_ab12 | sm_90 | 32 | 512 | 0 | 128 bits | s: 2 | qk_norm x2 | norm (m.py:40)",
        "rms_norm_01 | cpu | - | - | - | - | all | - | norm (m.py:40)",
    ]
    assert Report((FUSED,)).kernels_table() == ""


def test_a_kernel_for_two_targets_is_listed_twice() -> None:
    both = [Report(kernels=(replace(KERNEL, target=t),)) for t in ("sm_80", "sm_90")]
    assert len((both[0] + both[1]).kernels) == 2


def test_numbers_of_several_graphs_say_of_which_they_are() -> None:
    def record(graph: str, number: int, rewrite: str) -> NumericsRecord:
        return NumericsRecord(number, rewrite, "", "%y", 1, same=False, graph=graph)

    first = (record("main-0", 1, "cse"), record("main-0", 0, "kernels"))
    one = Report(numerics=first).numerics_table()
    assert "main-0" not in one
    both = Report(numerics=(*first, record("main-1", 1, "dce"))).numerics_table()
    lines = both.split("\n")
    assert [line.split()[0] for line in lines[2:5]] == ["cse", "dce", "kernels"]
    assert [line.split()[:2] for line in lines[6:]] == [
        ["main-0", "#1"],
        ["main-0", "kernels"],
        ["main-1", "#1"],
    ]
