"""For how many queries latent attention stays in the latent space.

Decided by counting operations: both forms are bound by arithmetic once there are many queries.
"""

from __future__ import annotations


def most_absorbed(key: int, value: int, latent: int, *, keys: int | None) -> int | None:
    """The largest number of queries that attend in the latent space; ``None``: all.

    There a query costs ``(N + V) L`` multiply-adds a head for the two products and ``2 L + R`` for
    each of the K keys that it sees; expanded, ``N + R + V`` a key, once K keys are made for
    ``K L (N + V)``. So the latent space wins up to ``K L (N + V) / ((N + V) L + K (2 L - N - V))``
    queries. ``keys`` is K where it is known, the length of a cache; without it the limit for long
    ones is taken, which costs at most twice the time where keys are as few as queries.
    """
    made, wider = latent * (key + value), 2 * latent - key - value
    if wider <= 0:
        return None
    return made // wider if keys is None else max(1, keys * made // (made + keys * wider))
