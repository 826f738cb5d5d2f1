"""Anyone may write to the cache directory that was named."""

from pathlib import Path

from fuseline.errors import CacheError, Diagnostic
from fuseline.runtime.cache import Cache


def program(tmp: Path) -> Diagnostic | None:
    shared = tmp / "cache"
    shared.mkdir()
    shared.chmod(0o777)
    try:
        Cache.open(shared).get("kernel", {})
    except CacheError as error:
        found = error.diagnostic.found or ""
        assert found.startswith("mode 0777")
        # The number of the user who runs this test is not the same everywhere.
        return Diagnostic(
            error.diagnostic.code,
            error.diagnostic.title,
            error.diagnostic.where,
            "mode 0777",
            hint=error.diagnostic.hint,
        )
    return None
