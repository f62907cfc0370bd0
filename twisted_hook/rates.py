"""How often each peer may be refused, and who was believed before.

Pure: the time is passed in. It remembers a bounded number of peers and needs no timer: what a peer has used up comes
back by the time that has gone by when it is next asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MOST_PEERS = 4096
"""Of each kind; the one that was heard of longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many a second for ever."""

    burst: float
    per_second: float


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What a peer has left."""

    tokens: float
    at: float
    """Since when it has had that much; seconds."""
    overdrawn: bool = False
    """Nothing was left, and it has not been full since then."""


class Refusals:
    """Counts how often each peer was refused."""

    def __init__(self, rate: Rate, *, most: int = MOST_PEERS) -> None:
        self.rate = rate
        self._most = most
        self._buckets: dict[bytes, _Bucket] = {}

    def exhausted(self, peer: bytes, now: float) -> bool:
        """Whether the peer has been refused as often as it may be."""
        return peer in self._buckets and self._refilled(peer, now).tokens < 1

    def count(self, peer: bytes, now: float) -> bool:
        """One more. Whether that was the last one, the first time since the peer had its whole burst left."""
        bucket = self._refilled(peer, now)
        tokens = max(0.0, bucket.tokens - 1)
        ends = tokens < 1 and not bucket.overdrawn
        self._buckets.pop(peer, None)
        self._buckets[peer] = replace(bucket, tokens=tokens, overdrawn=bucket.overdrawn or ends)
        if len(self._buckets) > self._most:
            del self._buckets[next(iter(self._buckets))]
        return ends

    def _refilled(self, peer: bytes, now: float) -> _Bucket:
        bucket = self._buckets.get(peer)
        if bucket is None:
            return _Bucket(self.rate.burst, now)
        elapsed = abs(now - bucket.at)  # a clock may be set back, by more than anybody should wait for
        tokens = min(self.rate.burst, bucket.tokens + elapsed * self.rate.per_second)
        return _Bucket(tokens, now, bucket.overdrawn and tokens < self.rate.burst)


class Acquaintances:
    """The peers from which something genuine has come."""

    def __init__(self, *, most: int = MOST_PEERS) -> None:
        self._most = most
        self._peers: dict[bytes, None] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._peers

    def add(self, peer: bytes) -> None:
        self._peers.pop(peer, None)
        self._peers[peer] = None
        if len(self._peers) > self._most:
            del self._peers[next(iter(self._peers))]
