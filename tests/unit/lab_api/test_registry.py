"""The verbs: optimistic concurrency, dry runs, finalizers, names, namespaces."""

from __future__ import annotations

from typing import Any

from kproxy.lab.api import kinds
from kproxy.lab.api.objects.base import DeleteOptions
from kproxy.lab.api.registry import WriteOptions
from tests.unit.lab_api.conftest import World

MAPS = kinds.CONFIG_MAPS


def test_a_new_object_gets_what_only_the_system_gives(empty: World) -> None:
    made = empty.create(MAPS, "a", metadata={"uid": "mine", "generation": 7})["metadata"]
    assert len(made["uid"]) == 36
    assert made["creationTimestamp"] == "2027-01-15T08:00:00Z"
    assert made["resourceVersion"].isdigit()
    assert "generation" not in made


def test_generated_names(empty: World) -> None:
    registry = empty.cluster.registry
    names = {
        registry.create(MAPS, "default", {"metadata": {"generateName": "x-"}})["metadata"]["name"] for _ in range(5)
    }
    assert len(names) == 5
    assert all(name.startswith("x-") and len(name) == 7 for name in names)


def test_an_old_version_conflicts(empty: World) -> None:
    old = empty.create(MAPS, "a")["metadata"]["resourceVersion"]
    empty.change(MAPS, "a", lambda o: o.update(data={"x": "1"}))
    message = empty.refused(lambda: empty.change(MAPS, "a", lambda o: o["metadata"].update(resourceVersion=old)))
    assert message.endswith(
        "the object has been modified; please apply your changes to the latest version and try again"
    )


def test_a_write_that_changes_nothing_is_no_change(empty: World) -> None:
    before = empty.create(MAPS, "a")["metadata"]["resourceVersion"]
    after = empty.change(MAPS, "a", lambda o: None)["metadata"]["resourceVersion"]
    assert before == after


def test_generation_counts_changes_of_the_spec(empty: World) -> None:
    spec = {"containers": [{"name": "c", "image": "x"}]}
    selector = {"matchLabels": {"a": "b"}}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": spec}
    empty.create(kinds.REPLICA_SETS, "rs", {"replicas": 0, "selector": selector, "template": template})

    def generation() -> int:
        found = empty.get(kinds.REPLICA_SETS, "rs")
        assert found is not None
        return int(found["metadata"]["generation"])

    assert generation() == 1
    empty.change(kinds.REPLICA_SETS, "rs", lambda o: o["metadata"].update(labels={"x": "y"}))
    empty.change(kinds.REPLICA_SETS, "rs", lambda o: o["status"].update(replicas=3), "status")
    assert generation() == 1
    empty.change(kinds.REPLICA_SETS, "rs", lambda o: o["spec"].update(replicas=1))
    assert generation() == 2


def test_status_and_spec_are_written_apart(empty: World) -> None:
    empty.service("s")
    ingress = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
    changed = empty.change(kinds.SERVICES, "s", lambda o: o.update(status=ingress))
    assert changed["status"] == {"loadBalancer": {}}
    changed = empty.change(kinds.SERVICES, "s", lambda o: (o.update(status=ingress), o["spec"].clear()), "status")  # type: ignore[func-returns-value]
    assert changed["status"] == ingress
    assert changed["spec"]["ports"]


def test_dry_runs_leave_nothing(empty: World) -> None:
    dry = WriteOptions(dry_run=True)
    obj: dict[str, Any] = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.4.4"}}
    shown = empty.cluster.registry.create(kinds.SERVICES, "default", obj, dry)
    assert shown["spec"]["clusterIP"] == "10.96.4.4"
    assert empty.get(kinds.SERVICES, "s") is None
    empty.service("s", clusterIP="10.96.4.4")
    empty.delete(kinds.SERVICES, "s", dry_run=True)
    assert empty.get(kinds.SERVICES, "s") is not None


def test_finalizers_hold_an_object_until_the_last_is_gone(empty: World) -> None:
    empty.create(MAPS, "a", metadata={"finalizers": ["example.com/a", "example.com/b"]})
    empty.delete(MAPS, "a")
    held = empty.get(MAPS, "a")
    assert held is not None
    assert held["metadata"]["deletionTimestamp"] == "2027-01-15T08:00:00Z"
    message = empty.refused(
        lambda: empty.change(MAPS, "a", lambda o: o["metadata"]["finalizers"].append("example.com/c"))
    )
    assert (
        'no new finalizers can be added if the object is being deleted, found new finalizers []string{"example.com/c"}'
        in message
    )
    empty.change(MAPS, "a", lambda o: o["metadata"].update(finalizers=["example.com/b"]))
    assert empty.get(MAPS, "a") is not None
    empty.change(MAPS, "a", lambda o: o["metadata"].pop("finalizers"))
    assert empty.get(MAPS, "a") is None


def test_preconditions(empty: World) -> None:
    uid = empty.create(MAPS, "a")["metadata"]["uid"]
    message = empty.refused(lambda: empty.cluster.registry.delete(MAPS, "default", "a", DeleteOptions(uid="other")))
    assert f"the UID in the precondition (other) does not match the UID in record ({uid})" in message
    empty.cluster.registry.delete(MAPS, "default", "a", DeleteOptions(uid=uid))


def test_grace_can_be_shortened_not_lengthened(empty: World) -> None:
    empty.create(kinds.NODES, "node-9")
    empty.create(kinds.PODS, "p", {"containers": [{"name": "c", "image": "x"}], "nodeName": "node-9"})

    def grace(**options: Any) -> tuple[int, str]:
        empty.delete(kinds.PODS, "p", **options)
        pod = empty.get(kinds.PODS, "p")
        assert pod is not None
        return pod["metadata"]["deletionGracePeriodSeconds"], pod["metadata"]["deletionTimestamp"]

    assert grace() == (30, "2027-01-15T08:00:30Z")
    assert grace(grace_period_s=60) == (30, "2027-01-15T08:00:30Z")
    assert grace(grace_period_s=5) == (5, "2027-01-15T08:00:05Z")


def test_objects_live_in_namespaces_that_exist(empty: World) -> None:
    registry = empty.cluster.registry
    assert (
        empty.refused(lambda: registry.create(MAPS, "nowhere", {"metadata": {"name": "a"}}))
        == 'namespaces "nowhere" not found'
    )
    other = {"metadata": {"name": "a", "namespace": "kube-system"}}
    assert "does not match the namespace sent on the request" in empty.refused(
        lambda: registry.create(MAPS, "default", other)
    )


def test_a_cluster_is_born_with_its_objects(empty: World) -> None:
    kubernetes = empty.get(kinds.SERVICES, "kubernetes")
    assert kubernetes is not None
    assert kubernetes["spec"]["clusterIP"] == "10.96.0.1"
    assert empty.addresses("kubernetes") == ["192.168.200.1"]
    namespaces = {o["metadata"]["name"] for o in empty.cluster.registry.objects(kinds.NAMESPACES)}
    assert namespaces == {"default", "kube-node-lease", "kube-public", "kube-system"}
