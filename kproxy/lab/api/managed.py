"""Who set which field: `metadata.managedFields`. (Tracking of plain writes comes with server-side apply.)"""

from __future__ import annotations

from kproxy.lab.api.values import Object


def note_update(new: Object, old: Object | None, manager: str, subresource: str, now: str) -> None:
    """Record that `manager` made `new` out of `old`."""
