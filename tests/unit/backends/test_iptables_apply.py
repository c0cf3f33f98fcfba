"""The applier over an iptables in memory: quarantine, contention, adoption, families, cleanup."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from kproxy.backends.base import ApplyReport
from kproxy.backends.iptables import filling, names
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.tool_runs import Done
from kproxy.backends.iptables.variant import Variant
from kproxy.errors import ApplyError, UnsupportedError
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from tests.support.builders import Built, ep, slice_, svc
from tests.support.fake_iptables import FakeMachine
from tests.support.flows import SETTINGS, Step

BUSY = Done(4, "", "Another app is currently holding the xtables lock. Stopped waiting after 5s.")
NO_LOOPBACK = replace(SETTINGS, localhost_node_ports=False)  # leaves the machine's route_localnet alone


def _desired(*objects: Built) -> DesiredState:
    return resolve(Step(tuple(objects)).snapshot(), NO_LOOPBACK)


def _services(*names: str) -> list[Built]:
    objects: list[Built] = []
    for n, name in enumerate(names, 1):
        objects += [svc(f"172.30.0.{n}", name=name), slice_(ep(f"10.180.0.{n}"), of=name)]
    return objects


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture(params=list(Variant), ids=lambda variant: variant.value)
def backend(machine: FakeMachine, request: pytest.FixtureRequest) -> Iterator[IptablesBackend]:
    return IptablesBackend(tools=machine.tools(request.param), runner=machine.run, capabilities=machine.capabilities)


def _apply(backend: IptablesBackend, *objects: Built, applied: Ruleset | None = None) -> Ruleset:
    wanted = backend.compile(_desired(*objects))
    report = asyncio.run(backend.apply(backend.plan(applied, wanted)))
    assert report.problems == ()
    return wanted


def _nothing_left(backend: IptablesBackend, wanted: Ruleset) -> bool:
    return backend.plan(asyncio.run(backend.observe()), wanted).batches == ()


def test_what_was_applied_is_there(backend: IptablesBackend) -> None:
    wanted = _apply(backend, *_services("a", "b"))
    assert _nothing_left(backend, wanted)
    fewer = _apply(backend, *_services("a"), applied=wanted)
    assert _nothing_left(backend, fewer)


def test_a_blind_plan_looks_first(backend: IptablesBackend, machine: FakeMachine) -> None:
    _apply(backend, *_services("a", "b"))
    taken = len(machine.of[Family.IPV4].restored)
    again = IptablesBackend(tools=backend.tools, runner=machine.run, capabilities=machine.capabilities)
    _apply(again, *_services("a", "b"))
    assert len(machine.of[Family.IPV4].restored) == taken


def test_a_refused_service_port_is_quarantined_and_the_others_work(
    backend: IptablesBackend, machine: FakeMachine
) -> None:
    poison = Done(1, "", "iptables-restore: line 2 failed")
    machine.of[Family.IPV4].weather = lambda text: poison if "ns1/poison:p80" in text else None
    names = [f"svc{n:02}" for n in range(20)]
    objects = _services(*names[:10], "poison", *names[10:])
    desired = _desired(*objects)
    wanted = backend.compile(desired)
    report = asyncio.run(backend.apply(backend.plan(asyncio.run(backend.observe()), wanted)))
    assert [problem.name for problem in report.problems] == ["ns1/poison:p80"]
    assert "left out" in report.problems[0].reason
    nat = machine.of[Family.IPV4].tables["nat"]
    assert sum(chain.startswith("KUBE-SVC-") for chain in nat) == 20
    # It stays out, without being tried again, until its Service changes.
    seen = asyncio.run(backend.observe())
    assert backend.plan(seen, backend.compile(desired)).batches == ()
    machine.of[Family.IPV4].weather = lambda text: None
    changed = backend.compile(
        _desired(*objects[:20], svc("172.30.0.11", name="poison", external=["192.168.99.9"]), *objects[21:])
    )
    assert asyncio.run(backend.apply(backend.plan(seen, changed))).problems == ()
    assert _nothing_left(backend, changed)


def _filled(
    machine: FakeMachine, variant: Variant, desired: DesiredState
) -> tuple[IptablesBackend, Ruleset, ApplyReport]:
    backend = IptablesBackend(tools=machine.tools(variant), runner=machine.run, capabilities=machine.capabilities)
    wanted, report = asyncio.run(backend.bring(asyncio.run(backend.observe()), desired))
    return backend, wanted, report


MANY = tuple(f"svc{n:03}" for n in range(filling.WORTH_IT))


def test_the_first_filling_gives_the_rules_of_a_plan() -> None:
    desired = _desired(*_services(*MANY), svc("172.31.0.1", name="closed"))
    poured, planned = FakeMachine(), FakeMachine()
    backend, wanted, report = _filled(poured, Variant.LEGACY, desired)
    _, same, steps = _filled(planned, Variant.NFT, desired)
    assert wanted == same
    assert (report.rules_written, report.problems) == (steps.rules_written, ())
    assert _nothing_left(backend, wanted)
    for family in Family:
        for table, chains in planned.of[family].tables.items():
            assert poured.of[family].tables[table] == chains
    nat = [text for text in poured.of[Family.IPV4].restored if text.startswith("*nat")]
    assert len(nat) == 1
    assert nat[0].count("COMMIT") == 1


def test_a_first_filling_that_is_refused_is_done_step_by_step(machine: FakeMachine) -> None:
    poison = Done(1, "", "iptables-restore: line 2 failed")
    machine.of[Family.IPV4].weather = lambda text: poison if "ns1/poison:p80" in text else None
    _, wanted, report = _filled(machine, Variant.LEGACY, _desired(*_services("poison", *MANY)))
    assert [problem.name for problem in report.problems] == ["ns1/poison:p80"]
    nat = machine.of[Family.IPV4].tables["nat"]
    assert sum(chain.startswith("KUBE-SEP-") for chain in nat) == len(MANY)
    assert wanted.ipv4.rule_count > len(MANY)


def test_a_kernel_with_services_is_not_filled(machine: FakeMachine) -> None:
    _filled(machine, Variant.LEGACY, _desired(*_services(*MANY)))
    _, _, report = _filled(machine, Variant.LEGACY, _desired(*_services(*MANY, "more")))
    assert 0 < report.rules_written < 100


def test_a_busy_lock_is_worth_a_retry(backend: IptablesBackend, machine: FakeMachine) -> None:
    machine.of[Family.IPV4].weather = lambda text: BUSY
    with pytest.raises(ApplyError) as caught:
        _apply(backend, *_services("a"))
    assert caught.value.retryable
    assert "xtables lock" in caught.value.detail
    machine.of[Family.IPV4].weather = lambda text: None
    assert _nothing_left(backend, _apply(backend, *_services("a")))


def test_a_lost_race_is_run_again_at_once(backend: IptablesBackend, machine: FakeMachine) -> None:
    raced: list[str] = []

    def race(text: str) -> Done | None:
        raced.append(text)
        commit = text.splitlines().index("COMMIT") + 1
        return Done(1, "", f"iptables-restore: line {commit} failed") if len(raced) == 1 else None

    machine.of[Family.IPV4].weather = race
    assert _nothing_left(backend, _apply(backend, *_services("a")))
    assert raced[0] == raced[1]


def test_an_entry_that_the_kernel_refuses_is_found_in_its_leaf_and_the_others_work(
    backend: IptablesBackend, machine: FakeMachine
) -> None:
    """The chains of `s3` are taken, what leads to them is not."""
    refused = Done(2, "", "iptables-restore: Bad argument\nError occurred at line: 3")
    machine.of[Family.IPV4].weather = lambda text: refused if "-d 172.30.0.3/32 -p tcp -m comment" in text and (
        "-A KUBE-SERVICES -d 172.30.0.3/32" in text or "/27 -d 172.30.0.3/32" in text
    ) else None  # fmt: skip
    desired = _desired(*_services(*(f"s{n}" for n in range(1, 60))))
    wanted = backend.compile(desired)
    report = asyncio.run(backend.apply(backend.plan(Ruleset(), wanted)))
    assert [problem.name for problem in report.problems] == ["ns1/s3:p80"]
    chains = machine.of[Family.IPV4].tables["nat"]
    entries = [rule for name, rules in chains.items() if names.is_dispatch("nat", name) for rule in rules]
    assert sum("cluster IP" in entry for entry in entries) == 58
    again = backend.compile(desired)
    seen = asyncio.run(backend.observe())
    assert asyncio.run(backend.apply(backend.plan(seen, again))).problems == ()
    assert _nothing_left(backend, again)


def test_entries_of_a_refused_service_port_are_left_out_of_every_leaf(
    backend: IptablesBackend, machine: FakeMachine
) -> None:
    """Its chains are not there, so that nothing may jump to them."""
    poison = Done(1, "", "iptables-restore: line 2 failed")
    machine.of[Family.IPV4].weather = lambda text: poison if "--to-destination 10.180.0.3:80" in text else None
    services = _services(*(f"s{n}" for n in range(1, 60)))
    wanted = backend.compile(_desired(*services))
    report = asyncio.run(backend.apply(backend.plan(Ruleset(), wanted)))
    assert [problem.name for problem in report.problems] == ["ns1/s3:p80"]
    assert "172.30.0.3/32" not in machine.of[Family.IPV4].save()
    assert "172.30.0.4/32" in machine.of[Family.IPV4].save()


def test_a_refused_frame_is_an_error(backend: IptablesBackend, machine: FakeMachine) -> None:
    lacking = Done(2, "", "iptables-restore v1.8.9 (legacy): Couldn't load match `comment':No such file")
    machine.of[Family.IPV4].weather = lambda text: lacking if "--comment" in text else None
    with pytest.raises(ApplyError, match="'comment' is not installed") as caught:
        _apply(backend, *_services("a"))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "failure",
    [
        Done(1, "", "boom"),
        Done(4, "", "iptables-restore: line 3: RULE_APPEND failed (Cannot allocate memory): rule in chain X"),
        Done(4, "", "iptables-restore: line 3: RULE_APPEND failed (Device or resource busy): rule in chain X"),
        Done(127, "", "exec: iptables-nft-restore: not found"),
        Done(-9, "", ""),
        OSError(2, "No such file or directory"),
    ],
    ids=["says nothing", "ENOMEM", "EBUSY", "wrapper without program", "killed", "no program"],
)
def test_fault_16_a_tool_that_fails_at_everything_leaves_nobody_out(
    machine: FakeMachine, failure: Done | OSError
) -> None:
    """Nothing is wrong about the Services then: they are tried again, all of them."""
    broken = False

    async def runner(program: Sequence[str], text: str, timeout_s: float) -> Done | None:
        if not broken:
            return await machine.run(program, text, timeout_s)
        if isinstance(failure, OSError):
            raise failure
        return failure

    backend = IptablesBackend(tools=machine.tools(), runner=runner, capabilities=machine.capabilities)
    before = _apply(backend, *_services("a", "b"))
    rules = machine.of[Family.IPV4].save()
    broken = True
    with pytest.raises(ApplyError) as caught:
        _apply(backend, *_services("a", "b", "c", "d"), applied=before)
    assert caught.value.retryable
    with pytest.raises(ApplyError) as caught:
        asyncio.run(backend.observe())
    assert backend.refused == () and machine.of[Family.IPV4].save() == rules
    broken = False
    assert _nothing_left(backend, _apply(backend, *_services("a", "b", "c", "d"), applied=before))


def test_a_family_that_worked_once_is_never_given_up(machine: FakeMachine) -> None:
    broken = Done(
        3, "", "iptables-restore v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist"
    )
    backend = IptablesBackend(tools=machine.tools(), runner=machine.run, capabilities=machine.capabilities)
    seen = asyncio.run(backend.observe())
    machine.of[Family.IPV4].weather = lambda text: broken
    with pytest.raises(ApplyError) as caught:
        _apply(backend, *_services("a"), applied=seen)
    assert caught.value.retryable and not backend.unserved


def test_a_tool_that_hangs_is_an_error_to_retry(machine: FakeMachine) -> None:
    async def hang(program: object, text: str, timeout_s: float) -> Done | None:
        return None

    backend = IptablesBackend(tools=machine.tools(), runner=hang)
    with pytest.raises(ApplyError, match="no end after 120 s") as caught:
        asyncio.run(backend.observe())
    assert caught.value.retryable


def test_a_family_that_cannot_be_served_does_not_stop_the_other(machine: FakeMachine) -> None:
    tools = machine.tools()
    only_four = replace(tools, programs={key: name for key, name in tools.programs.items() if key[0] is Family.IPV4})
    backend = IptablesBackend(tools=only_four, runner=machine.run, capabilities=machine.capabilities)
    _apply(backend, *_services("a"))
    assert "KUBE-SERVICES" in machine.of[Family.IPV4].tables["nat"]
    assert machine.of[Family.IPV6].tables == {}
    assert any(note.startswith("IPv6 is not served: ") for note in backend.notes)


def test_no_family_at_all_is_not_supported(machine: FakeMachine) -> None:
    backend = IptablesBackend(
        tools=replace(machine.tools(), programs={}), runner=machine.run, capabilities=machine.capabilities
    )
    with pytest.raises(UnsupportedError, match="is not installed"):
        asyncio.run(backend.observe())


FOREIGN = """\
*nat
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.0.9:80
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A FORWARD -i eth9 -j ACCEPT
COMMIT
*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
"""


def test_cleanup_leaves_what_is_not_ours(backend: IptablesBackend, machine: FakeMachine) -> None:
    fake = machine.of[Family.IPV4]
    fake.restore(FOREIGN)
    before = fake.save()
    _apply(backend, *_services("a", "b", "c"))
    asyncio.run(backend.cleanup())
    assert fake.save() == before


def test_rules_of_kube_proxy_are_taken_over(backend: IptablesBackend, machine: FakeMachine) -> None:
    """Saved from a node: unordered entries, a counter rule, a Service that is gone."""
    wanted = _apply(backend, *_services("a", "b", "c"))
    fake = machine.of[Family.IPV4]
    nat = fake.tables["nat"]
    nat["KUBE-SERVICES"][:3] = reversed(nat["KUBE-SERVICES"][:3])
    nat["KUBE-SEP-AAAAAAAAAAAAAAAA"] = ["-p tcp -m tcp -j DNAT --to-destination 10.180.9.9:80"]
    nat["KUBE-SVC-AAAAAAAAAAAAAAAA"] = ["-j KUBE-SEP-AAAAAAAAAAAAAAAA"]
    nat["KUBE-SERVICES"].insert(1, "-d 172.30.9.9/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA")
    fake.tables["filter"]["KUBE-FORWARD"][0] = (
        "-m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP"
    )
    report = asyncio.run(backend.apply(backend.plan(asyncio.run(backend.observe()), wanted)))
    assert report.rules_written == 3 + 4  # KUBE-FORWARD; KUBE-SERVICES, which has one entry too many
    assert report.chains_deleted == 2
    assert _nothing_left(backend, wanted)


def test_a_chain_that_somebody_else_uses_is_a_problem_and_nothing_more(
    backend: IptablesBackend, machine: FakeMachine
) -> None:
    wanted = _apply(backend, *_services("a"))
    nat = machine.of[Family.IPV4].tables["nat"]
    nat["KUBE-SVC-AAAAAAAAAAAAAAAA"] = []
    nat["SOMEBODY"] = ["-j KUBE-SVC-AAAAAAAAAAAAAAAA"]
    report = asyncio.run(backend.apply(backend.plan(asyncio.run(backend.observe()), wanted)))
    assert [(p.kind, p.name) for p in report.problems] == [("Chain", "KUBE-SVC-AAAAAAAAAAAAAAAA")]


def test_notes_tell_the_evidence(machine: FakeMachine) -> None:
    backend = IptablesBackend(tools=machine.tools(Variant.NFT), runner=machine.run, capabilities=machine.capabilities)
    assert backend.notes == ("iptables-nft: a fake",)
    assert backend.mode == "iptables"


def test_a_kernel_without_ipv6_is_noted(machine: FakeMachine) -> None:
    backend = IptablesBackend(
        tools=replace(machine.tools(), has_ipv6=False), runner=machine.run, capabilities=machine.capabilities
    )
    asyncio.run(backend.observe())
    assert "IPv6 is not served: this kernel runs without IPv6" in backend.notes[-1]


def _no_recent(text: str) -> Done | None:
    return Done(1, "", "iptables-restore: line 9 failed") if " -m recent " in text else None


def test_a_kernel_without_recent_serves_without_affinity(backend: IptablesBackend, machine: FakeMachine) -> None:
    machine.lacking = ("match recent",)
    machine.of[Family.IPV4].weather = _no_recent
    objects = [*_services("a"), svc("172.30.0.9", name="sticky", affinity_s=600), slice_(ep("10.180.0.9"), of="sticky")]
    with pytest.raises(ApplyError, match="session affinity is off") as caught:
        _apply(backend, *objects)
    assert caught.value.retryable
    assert _nothing_left(backend, _apply(backend, *objects))
    assert "this kernel lacks match recent, which rules use" in backend.notes
    assert sum(chain.startswith("KUBE-SVC-") for chain in machine.of[Family.IPV4].tables["nat"]) == 2
