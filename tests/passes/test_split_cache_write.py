"""split-cache-write: the parts of a key go into the cache one by one, and when they may not."""

from __future__ import annotations

import pytest

from fuseline.passes.split_cache_write import SplitCacheWrite
from fuseline.testing import assert_no_rewrite, assert_rewrites

WHOLE = "%k = concat [%a, %b, %a] {axis = 3}"


def written(part: str, batch: int, start: int) -> str:
    return f"index_write %kc, %at, {part} {{axis = 2, origin = ({batch}, 0, 0, {start})}}"


@pytest.mark.parametrize("batch", [0, 2])
def test_parts_begin_where_they_stood(batch: int) -> None:
    """A part may occur twice, and the whole may go into a part of the batch."""
    assert_rewrites(
        SplitCacheWrite(),
        f"""func @f(%a: bf16[1, 2, S, 5], %b: bf16[1, 2, S, 3], %at: i64[S],
            %kc: buffer<bf16[3, 2, 16, 13]>) where S in 0..16 {{
          {WHOLE}
          {written("%k", batch, 0)}
          %y = read %kc
          return %y
        }}""",
        f"""func @f(%a: bf16[1, 2, S, 5], %b: bf16[1, 2, S, 3], %at: i64[S],
            %kc: buffer<bf16[3, 2, 16, 13]>) where S in 0..16 {{
          {written("%a", batch, 0)}
          {written("%b", batch, 5)}
          {written("%a", batch, 8)}
          %y = read %kc
          return %y
        }}""",
    )


def test_no_split_where_the_whole_is_read() -> None:
    """A model may attend over the keys of this step as well."""
    assert_no_rewrite(
        SplitCacheWrite(),
        f"""func @f(%a: bf16[1, 2, S, 5], %b: bf16[1, 2, S, 3], %at: i64[S],
            %kc: buffer<bf16[3, 2, 16, 13]>) where S in 0..16 {{
          {WHOLE}
          {written("%k", 0, 0)}
          return %k
        }}""",
        None,
    )


def test_no_split_along_the_axis_of_the_index() -> None:
    """Tokens put one behind the other have their places in one index."""
    assert_no_rewrite(
        SplitCacheWrite(),
        """func @f(%a: f32[1, 2, 3, 5], %b: f32[1, 2, 4, 5], %at: i64[7],
            %kc: buffer<f32[1, 2, 16, 5]>) {
          %k = concat [%a, %b] {axis = 2}
          index_write %kc, %at, %k {axis = 2}
          return
        }""",
        None,
    )
