"""What the pass before knew of Services, kept over a restart: the file `flows.json` in the run directory.

In and out: the keys (address and port, or node port) that UDP Service ports had at the last pass that went well. Without it the flows of a
Service that was removed while no controller ran would look like anybody's; with it they are known for certain. The run directory lives as
long as the node and its flows do. A file that cannot be read or written costs exactly that and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kproxy.model.names import Family

_LARGEST = 8 << 20  # bytes; 200,000 IPv6 keys
_LENGTHS = (2, 6, 18)  # of a key: a node port, IPv4 and port, IPv6 and port

Keys = Mapping[Family, frozenset[bytes]]


def load(path: Path) -> Keys:
    """The keys in the file; none when there is none. Raises OSError and ValueError (not what `save` writes)."""
    with path.open("rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    try:
        keys = {family: frozenset(bytes.fromhex(key) for key in found.get(family.value, [])) for family in Family}
    except TypeError:
        raise ValueError("not lists of keys") from None
    if any(len(key) not in _LENGTHS for known in keys.values() for key in known):
        raise ValueError("a key of an impossible length")
    return keys


def save(path: Path, keys: Keys) -> None:
    """Replaces the file. OSError: it cannot be written."""
    text = json.dumps({family.value: sorted(key.hex() for key in known) for family, known in keys.items()})
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="ascii")
    beside.replace(path)
