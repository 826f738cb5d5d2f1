"""Built code, kept where every process of this user finds it again. See `store` for its use.

An entry is known by the digest of all that went into it, and by nothing else, so a cache can be
copied, layered, shared read-only, pruned or deleted at any moment, and is never stale. Processes
need no coordination: an entry appears at once and whole, and proves it on every load.
"""

from fuseline.runtime.cache.entry import Entry, Factors, Json, canonical, flatten, key_of
from fuseline.runtime.cache.location import user_cache
from fuseline.runtime.cache.store import Cache, Pruned, Stats
from fuseline.runtime.cache.why import Difference, Why, brief

__all__ = [
    "Cache",
    "Difference",
    "Entry",
    "Factors",
    "Json",
    "Pruned",
    "Stats",
    "Why",
    "brief",
    "canonical",
    "flatten",
    "key_of",
    "user_cache",
]
