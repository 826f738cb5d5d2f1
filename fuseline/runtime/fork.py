"""What a forked child begins anew: it has its parent's memory, and none of its threads.

A lock that another thread held at the moment of the fork is held in the child for ever.
"""

from __future__ import annotations

import os
import weakref
from functools import lru_cache
from typing import Protocol


class Renewable(Protocol):
    """Something with locks."""

    def renew(self) -> None:
        """Make locks anew, and forget what another thread was in the middle of."""
        ...


_KNOWN: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_children(item: Renewable) -> None:
    """Have an object renewed in every child that this process forks from now on."""
    _register()
    _KNOWN.add(item)


@lru_cache(maxsize=1)
def _register() -> None:
    os.register_at_fork(after_in_child=_renew_all)


def _renew_all() -> None:
    for item in list(_KNOWN):
        item.renew()
