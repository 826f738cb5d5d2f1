"""Everything that touches private names of torch, for torch 2.11 to 2.14.

Differences between versions are bridged here, by testing for the feature and never by the version
number. The rest of the package calls what is exported here and keeps to torch's public API. What
is behind second starts (`precompile`, `recording`, `identities`) is imported from its own modules.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuseline._torch.native import (
        current_stream,
        dlpack_exchange,
        end_allocations,
        sgemm_address,
        thread_limits,
    )
    from fuseline._torch.nodes import (
        is_functorch,
        is_grad_mode,
        may_write,
        name_of_target,
        source_name,
        torch_name,
        turns_gradients_off,
    )
    from fuseline._torch.operators import (
        Overload,
        Schema,
        below_autograd,
        default_norm_eps,
        dispatching,
        functional_overload,
        is_overload,
        is_random,
        schema_of,
    )
    from fuseline._torch.profiling import named_range, profiling
    from fuseline._torch.quiet import refusals_to, tracing_errors_to
    from fuseline._torch.symbolic import (
        ShapeEnv,
        example,
        expression,
        fake_mode_of,
        is_fake,
        is_unbacked,
        plain_limits,
        resized,
        scalar_expression,
        shape_env_of,
        symbol_range,
    )
    from fuseline._torch.tensors import (
        empty_strided,
        has_hooks,
        hooks_of,
        storage_holders,
        storage_of,
    )
    from fuseline._torch.tracing import (
        asked_of_sizes,
        export_graph,
        functional_graph,
        is_unproven_size,
        never_compiled,
        optimize,
        traced_frame,
    )
    from fuseline._torch.turns import Lines, Run, Turns, can_trace_all_turns, traced_turns
    from fuseline._torch.watch import (
        Break,
        CompileWatch,
        break_at_sizes_of_data,
        may_break_at_sizes_of_data,
    )

__all__ = [
    "ShapeEnv",
    "current_stream",
    "end_allocations",
    "fake_mode_of",
    "is_fake",
    "shape_env_of",
    "example",
    "expression",
    "scalar_expression",
    "symbol_range",
    "is_unbacked",
    "plain_limits",
    "resized",
    "Overload",
    "Schema",
    "schema_of",
    "functional_overload",
    "is_overload",
    "is_random",
    "default_norm_eps",
    "below_autograd",
    "dispatching",
    "name_of_target",
    "torch_name",
    "may_write",
    "is_functorch",
    "is_grad_mode",
    "turns_gradients_off",
    "source_name",
    "export_graph",
    "asked_of_sizes",
    "is_unproven_size",
    "functional_graph",
    "optimize",
    "never_compiled",
    "traced_frame",
    "profiling",
    "named_range",
    "refusals_to",
    "tracing_errors_to",
    "Break",
    "CompileWatch",
    "may_break_at_sizes_of_data",
    "break_at_sizes_of_data",
    "Lines",
    "Run",
    "Turns",
    "traced_turns",
    "can_trace_all_turns",
    "storage_of",
    "storage_holders",
    "has_hooks",
    "hooks_of",
    "empty_strided",
    "dlpack_exchange",
    "sgemm_address",
    "thread_limits",
]

_HOMES = {
    **dict.fromkeys(
        ["current_stream", "dlpack_exchange", "end_allocations", "sgemm_address", "thread_limits"],
        "native",
    ),
    **dict.fromkeys(
        [
            "is_functorch",
            "is_grad_mode",
            "may_write",
            "name_of_target",
            "source_name",
            "torch_name",
            "turns_gradients_off",
        ],
        "nodes",
    ),
    **dict.fromkeys(
        [
            "Overload",
            "Schema",
            "below_autograd",
            "default_norm_eps",
            "dispatching",
            "functional_overload",
            "is_overload",
            "is_random",
            "schema_of",
        ],
        "operators",
    ),
    **dict.fromkeys(["named_range", "profiling"], "profiling"),
    **dict.fromkeys(["refusals_to", "tracing_errors_to"], "quiet"),
    **dict.fromkeys(
        [
            "ShapeEnv",
            "example",
            "expression",
            "fake_mode_of",
            "is_fake",
            "is_unbacked",
            "plain_limits",
            "resized",
            "scalar_expression",
            "shape_env_of",
            "symbol_range",
        ],
        "symbolic",
    ),
    **dict.fromkeys(
        ["empty_strided", "has_hooks", "hooks_of", "storage_holders", "storage_of"], "tensors"
    ),
    **dict.fromkeys(
        [
            "export_graph",
            "functional_graph",
            "asked_of_sizes",
            "is_unproven_size",
            "never_compiled",
            "optimize",
            "traced_frame",
        ],
        "tracing",
    ),
    **dict.fromkeys(["Lines", "Run", "Turns", "can_trace_all_turns", "traced_turns"], "turns"),
    **dict.fromkeys(
        ["Break", "CompileWatch", "break_at_sizes_of_data", "may_break_at_sizes_of_data"], "watch"
    ),
}
"""The module of each name. It is imported when that is first used: what runs compiled programs
needs little of this, and no tracing.
"""


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
