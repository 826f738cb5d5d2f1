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
            Cache.open(tmp / "cache").get_or_build("kernel", {}, build)
        except CacheError as error:
            return error.diagnostic
    return None
