"""The event loop of a worker process: uvloop where it is installed (its wake-up costs a third of asyncio's), else asyncio's own.

What must not happen here: anything else. DNS and loopback workers begin with it, and pay for each import on every node; relay workers
have a loop of their own (relay/poller.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def run(main_task: Coroutine[Any, Any, None]) -> None:
    """Runs `main_task` to its end."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main_task)
    else:
        uvloop.run(main_task)
