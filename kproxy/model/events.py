"""What can happen to a snapshot. Watches and netlink speak these four words, and nothing else changes state.

A `Replaced` says "this is the whole kind": objects not in it are gone, which is how a relist after 410 heals missed deletions. It is also
the explicit statement that the kind is synced; nobody infers readiness from silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.model.objects import Decoded, Kind, ObjectKey


@dataclass(frozen=True, slots=True)
class Replaced:
    """The complete list of a kind, old objects included."""

    kind: Kind
    objects: tuple[Decoded, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """An object was added or changed."""

    object: Decoded


@dataclass(frozen=True, slots=True)
class Removed:
    """An object was deleted."""

    key: ObjectKey


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """The addresses on this node's interfaces (netlink), canonical text, all of them."""

    addresses: frozenset[str]


Event = Replaced | Applied | Removed | AddressesChanged
