"""fuse-linear-add: the residual in the product's epilogue."""

from __future__ import annotations

from fuseline.passes.fuse_linear_add import FuseLinearAdd
from fuseline.testing import assert_no_rewrite, assert_rewrites

HEAD = """func @f(%x: f16[B, S, 6], %w: f16[8, 6] = param "w", %b: f16[8] = param "b",
  %r: f16[B, S, 8], %n: f16[8] = param "n") {"""


def test_fuse_with_bias_on_either_side() -> None:
    for sides in ("%y, %r", "%r, %y"):
        assert_rewrites(
            FuseLinearAdd(),
            before=f"{HEAD}\n %y = linear %x, %w, %b\n %s = add {sides}\n return %s\n }}",
            after=f"{HEAD}\n %s = linear_add %x, %w, %r, %b\n return %s\n }}",
        )


def test_fuse_of_two_branches_takes_both() -> None:
    """A parallel block adds attention and MLP to the residual, one after the other."""
    assert_rewrites(
        FuseLinearAdd(),
        before=f"""{HEAD}
          %a = linear %x, %w
          %c = linear %x, %w, %b
          %s = add %r, %a
          %t = add %s, %c
          return %t
        }}""",
        after=f"""{HEAD}
          %s = linear_add %x, %w, %r
          %t = linear_add %x, %w, %s, %b
          return %t
        }}""",
    )


NORM = """
  %y = linear %x, %w
  %s = add %r, %y
  %z = rms_norm %s, %n
  return %s, %z
}"""


def test_no_fuse_before_a_norm_by_default() -> None:
    assert_no_rewrite(FuseLinearAdd(), HEAD + NORM, None)


def test_fuse_before_a_norm_where_asked_for() -> None:
    assert_rewrites(
        FuseLinearAdd(before_norms=True),
        before=HEAD + NORM,
        after=f"""{HEAD}
          %s = linear_add %x, %w, %r
          %z = rms_norm %s, %n
          return %s, %z
        }}""",
    )


def test_no_fuse_of_a_product_with_another_reader() -> None:
    assert_no_rewrite(
        FuseLinearAdd(), f"{HEAD}\n %y = linear %x, %w\n %s = add %r, %y\n return %s, %y\n }}", None
    )


def test_no_fuse_of_a_residual_made_from_the_product() -> None:
    assert_no_rewrite(
        FuseLinearAdd(),
        f"{HEAD}\n %y = linear %x, %w\n %t = tanh %y\n %s = add %t, %y\n return %s\n }}",
        None,
    )


def test_no_fuse_of_a_broadcast_residual() -> None:
    assert_no_rewrite(
        FuseLinearAdd(), f"{HEAD}\n %y = linear %x, %w\n %s = add %y, %n\n return %s\n }}", None
    )
