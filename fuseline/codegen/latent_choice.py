"""For how many queries latent attention stays in the latent space.

Both forms reach about the same share of a core's arithmetic (Zen 3, AVX2, one thread), so counting
operations is enough. Measured against `most_absorbed`, 16 heads: with N = V = 64, L = 256, R = 32
and 2048 keys both take the same time at 75 queries in float32 and at 110 in bfloat16 (counted: 81);
with 256 keys at 58 and 80 (counted: 64).
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
