"""Every disk is full."""

import errno
import warnings
from pathlib import Path

from fuseline.errors import CacheError, Diagnostic, FuselineWarning
from fuseline.runtime.cache import Cache


def program(tmp: Path) -> Diagnostic | None:
    def build(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FuselineWarning)  # FL0604 comes first
        try:
            # A key of its own: other tests have left theirs in the process's temporary cache.
            Cache.open(tmp / "cache").get_or_build("kernel", {"name": "never_built"}, build)
        except CacheError as error:
            return error.diagnostic
    return None
