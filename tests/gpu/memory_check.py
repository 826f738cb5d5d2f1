"""Runs one test of each kernel family under compute-sanitizer, on a GPU.

    python -m tests.gpu.memory_check

It finds what numbers need not show: accesses outside of a buffer, and misaligned ones. Torch asks
the driver for every tensor, so that one behind the other is not taken for part of it. The exit code
is 1 where the checker found something, or a test failed; without the checker it says so, and is 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

TOOL = "compute-sanitizer"
HERE = "tests/codegen/gpu/"
CASES: Mapping[str, str] = {
    "adapter_high": "test_adapters.py::test_any_number_of_rows[bf16]",
    "adapter_low": "test_adapters.py::test_any_number_of_rows[f16]",
    "adapter_sort": "test_adapters.py::test_any_number_of_rows[f32]",
    "argmax": "test_index.py::test_argmax[f32-63]",
    "argmax_join": "test_index.py::test_argmax[bf16-5003]",
    "attention": "test_attention.py::test_head_widths[80]",
    "attention_combine": "test_attention.py::test_keys_cut_over_blocks[130]",
    "cumsum": "test_select.py::test_cumsum_of_strided_operands_and_unknown_sizes",
    "experts_product": "test_experts.py::test_any_number_of_tokens[bf16]",
    "experts_sort": "test_experts.py::test_any_number_of_tokens[f16]",
    "experts_sum": "test_experts.py::test_indices_outside_add_nothing[5]",
    "gather": "test_index.py::test_cases[tables_by_position[bf16-i64]]",
    "heads_cuda": "test_cuda_heads.py::test_head_widths[bf16-112]",
    "head_product": "test_latent.py::test_both_forms_by_the_number_of_queries[bf16]",
    "index_last": "test_index.py::test_the_last_of_equal_places_counts_among_many",
    "index_write": "test_index.py::test_an_index_outside_is_not_written",
    "linear_finish": "test_linear.py::test_few_columns_of_long_rows_share_out_k",
    "linear_rows": "test_linear.py::test_siblings_share_a_kernel[1]",
    "linear_tile": "test_linear.py::test_siblings_share_a_kernel[7]",
    "merged_rows": "test_merged_rows.py::test_cases[norms_and_a_rotation[bf16-half]]",
    "mla_projection": "test_mla_projection.py::test_all_rows_at_odd_sizes[bf16]",
    "pointwise": "test_lower_pointwise.py::test_a_transposed_copy_goes_by_squares[shape0-bf16]",
    "qk_norm_rope": "test_heads.py::test_head_widths[bf16-112]",
    "rope": "test_norm.py::test_cases[rope_before_and_after_the_transpose[bf16-half]]",
    "route": "test_route.py::test_lowering[sizes0]",
    "norm_linear": "test_norm_linear.py::test_siblings_of_a_sum[1-bf16]",
    "row_norm": "test_norm.py::test_cases[norms_of_slices[bf16]]",
    "row_norm_cuda": "test_cuda_norm.py::test_cases[norms_of_slices[bf16]]",
    "shift_write": "test_index.py::test_cases[a_window_moves_on[bf16-9]]",
    "topk": "test_select.py::test_topk_takes_the_first_of_equal_elements",
}
"""A test for each template of Triton and of CUDA C++, by the template's name."""


def command(tool: str) -> list[str]:
    """What is run: the checker, and pytest in it."""
    check = [tool, "--tool", "memcheck", "--error-exitcode", "1", "--print-limit", "20"]
    check += ["--report-api-errors", "no"]  # libraries ask the driver for what it may not have
    tests = [HERE + case for case in dict.fromkeys(CASES.values())]
    return [*check, sys.executable, "-m", "pytest", "-q", "--device", "cuda", *tests]


def main() -> int:
    """Run it, where there is one."""
    tool = shutil.which(TOOL)
    if tool is None:
        print(f"The memory of kernels was not checked: there is no {TOOL} on the path.")
        return 0
    settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command(tool), env={**os.environ, **settings}, check=False)
    found = "found nothing" if done.returncode == 0 else "found errors, or a test failed: see above"
    print(f"{TOOL} ran {len(CASES)} kernel families and {found}.")
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
