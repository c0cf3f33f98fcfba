"""Whether anybody answers: asked at addresses that this node holds, by questions that no configuration keeps quiet about."""

from __future__ import annotations

import signal
import time

from kproxy.dns.blocks import Acl, AclAction, AclRule, ServerBlock
from kproxy.dns.settings import DnsSettings
from kproxy.dns.vigil import MISSES, PATIENCE_S, Vigil
from tests.support.dns_worker import PORT, Workers, wait_until
from tests.support.queries import zone_of

LOOK_S = 0.05


def _look(vigil: Vigil, times: int) -> None:
    for _ in range(times):
        vigil.look(time.monotonic())
        time.sleep(LOOK_S)


def test_a_worker_that_answers_is_heard_and_one_that_hangs_or_is_gone_is_not() -> None:
    settings = DnsSettings(reverse_zones=(), fallthrough=())
    with Workers(settings) as workers:
        workers.publish(zone_of("U", settings))
        vigil = Vigil((workers.address[0],), PORT)
        _look(vigil, 10)
        assert vigil.lost == 0 and vigil.answered and not vigil.silent
        workers.processes[0].send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            while not vigil.silent:
                _look(vigil, 1)
                assert time.monotonic() - began < 10
            assert vigil.lost >= MISSES
        finally:
            workers.processes[0].send_signal(signal.SIGCONT)
        wait_until(lambda: _look(vigil, 1) or not vigil.silent, "it is heard again")
        workers.kill(0)
        time.sleep(PATIENCE_S)
        _look(vigil, 1 + MISSES)
        assert vigil.silent, "refused at once"
        vigil.forget()
        assert not vigil.silent


def test_no_directive_keeps_quiet_about_it_and_nothing_is_asked_elsewhere() -> None:
    drop = Acl(rules=(AclRule(action=AclAction.DROP),))
    settings = DnsSettings(port=PORT, blocks=(ServerBlock(port=PORT, acl=(drop,), whoami=True),))
    with Workers(settings) as workers:
        workers.ready()
        vigil = Vigil((workers.address[0],), PORT)
        _look(vigil, 10)
        assert vigil.lost == 0 and vigil.answered
        vigil.forget()
    absent = Vigil(("203.0.113.77",), PORT)
    _look(absent, 10)
    assert not absent.silent and absent.lost == 0 and not absent.answered
