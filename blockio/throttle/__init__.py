"""Limits on how fast disks may be used: leaky buckets, and groups of disks that share them."""

from __future__ import annotations

from blockio.throttle.buckets import Direction, Limit, ThrottleConfig, ThrottleState
from blockio.throttle.groups import ThrottleGroup, ThrottleMember, find_group

__all__ = [
    "Direction",
    "Limit",
    "ThrottleConfig",
    "ThrottleGroup",
    "ThrottleMember",
    "ThrottleState",
    "find_group",
]
