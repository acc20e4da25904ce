"""Cancelling what runs on threads too, where no two runs suspend alike: after so many turns of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["cancelled_after"]


async def cancelled_after(turns: int, work: Coroutine[Any, Any, object]) -> bool:
    """Let *work* run for *turns* turns of the loop, cancel it and wait for its end.

    False: it was done before that. An error of its own is raised.
    """
    task = asyncio.create_task(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False
