"""The cache directory that was named lies where fuseline is installed."""

from pathlib import Path

import fuseline
from fuseline.errors import CacheError, Diagnostic
from fuseline.runtime.cache import Cache


def program(tmp: Path) -> Diagnostic | None:
    package = Path(fuseline.__file__).parent
    (tmp / "link").symlink_to(package)
    try:
        Cache.open(tmp / "link" / "cache").get("kernel", {})
    except CacheError as error:
        return error.diagnostic
    return None
