"""Maps of ServicePortNames stay in order, however many names come."""

from __future__ import annotations

import random

import pytest

from kproxy.model.names import NamespacedName, Protocol, ServicePortName
from kproxy.model.ordering import in_order, in_order_again


@pytest.mark.parametrize("came", [0, 1, 2, 16, 17, 60], ids=str)
def test_what_came_last_finds_its_place(came: int) -> None:
    rng = random.Random(came)
    names = [
        ServicePortName(NamespacedName(f"ns{rng.randrange(4)}", f"svc{n}"), port, protocol)
        for n in range(20)
        for port in ("", "a")
        for protocol in (Protocol.UDP, Protocol.TCP)
    ]
    rng.shuffle(names)
    values = {name: str(name) for name in names}
    ordered = in_order(values)
    assert list(ordered) == sorted(values, key=lambda name: name.sort_key)
    split = len(names) - came
    some = in_order({name: values[name] for name in names[:split]})
    some.update({name: values[name] for name in names[split:]})
    assert list(in_order_again(some, came).items()) == list(ordered.items())
