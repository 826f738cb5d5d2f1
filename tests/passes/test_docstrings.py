"""The Before and After of every pass's docstring are run: the IR text, then the numbers."""

from __future__ import annotations

import pytest

from fuseline.passes.rewrite import Pass
from fuseline.testing import assert_documented, shipped_passes


@pytest.mark.parametrize("pass_class", shipped_passes(), ids=lambda p: p.name)
def test_docstring_example_is_what_the_pass_does(pass_class: type[Pass]) -> None:
    assert_documented(pass_class)
