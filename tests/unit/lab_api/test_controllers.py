"""The controllers, run to rest without waiting."""

from __future__ import annotations

from typing import Any

from kproxy.lab.api import kinds
from kproxy.lab.api.controllers.deployments import limits_of, template_hash
from tests.unit.lab_api.conftest import Object, World

PODS, SERVICES = kinds.PODS, kinds.SERVICES


def template(image: str = "nginx:1", **labels: str) -> Object:
    return {"metadata": {"labels": labels or {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}}


def deploy(world: World, replicas: int = 3, **spec: Any) -> Object:
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}}, "template": template(), **spec}
    made = world.create(kinds.DEPLOYMENTS, "d", spec)
    world.settle()
    return made


def pod(world: World, name: str, **labels: str) -> Object:
    spec = {"containers": [{"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 8080}]}]}
    return world.create(PODS, name, spec, metadata={"labels": labels or {"app": "d"}})


def images(world: World) -> list[str]:
    pods = world.cluster.registry.objects(PODS, "default")
    return sorted(p["spec"]["containers"][0]["image"] for p in pods)


# workloads


def test_a_deployment_becomes_pods_on_all_nodes(world: World) -> None:
    deploy(world, replicas=6)
    nodes = sorted(p["spec"]["nodeName"] for p in world.cluster.registry.objects(PODS, "default"))
    assert nodes == ["node-1", "node-1", "node-2", "node-2", "node-3", "node-3"]
    deployment = world.get(kinds.DEPLOYMENTS, "d")
    assert deployment is not None
    assert deployment["status"]["availableReplicas"] == 6
    reasons = {c["type"]: c["reason"] for c in deployment["status"]["conditions"]}
    assert reasons == {"Available": "MinimumReplicasAvailable", "Progressing": "NewReplicaSetAvailable"}


def test_a_new_template_rolls_and_the_old_set_stays_empty(world: World) -> None:
    deploy(world)
    world.change(kinds.DEPLOYMENTS, "d", lambda d: d["spec"].update(template=template("nginx:2")))
    world.settle()
    assert images(world) == ["nginx:2"] * 3
    sizes = sorted(s["spec"]["replicas"] for s in world.cluster.registry.objects(kinds.REPLICA_SETS, "default"))
    assert sizes == [0, 3]


def test_going_back_uses_the_old_set_under_a_new_revision(world: World) -> None:
    deploy(world)
    for image in ("nginx:2", "nginx:1"):
        world.change(kinds.DEPLOYMENTS, "d", lambda d, image=image: d["spec"].update(template=template(image)))
        world.settle()
    assert images(world) == ["nginx:1"] * 3
    assert len(world.names(kinds.REPLICA_SETS)) == 2
    deployment = world.get(kinds.DEPLOYMENTS, "d")
    assert deployment is not None
    assert deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"


def test_a_rollout_that_never_gets_ready_keeps_the_old_pods(empty: World) -> None:
    """Without nodes nothing gets ready: the new pods wait, the old ones are kept as far as maxUnavailable demands."""
    deploy(empty, replicas=4)
    for name in empty.names(PODS):
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
        empty.change(PODS, name, lambda p, c=ready: p["status"].update(phase="Running", conditions=[c]), "status")
    empty.settle()
    empty.change(kinds.DEPLOYMENTS, "d", lambda d: d["spec"].update(template=template("nginx:2")))
    empty.settle()
    assert images(empty) == ["nginx:1"] * 3 + ["nginx:2"] * 2, "4 + 1 surge, 1 unavailable"
    empty.clock.now += 601
    empty.settle()
    deployment = empty.get(kinds.DEPLOYMENTS, "d")
    assert deployment is not None
    reasons = [c["reason"] for c in deployment["status"]["conditions"] if c["type"] == "Progressing"]
    assert reasons == ["ProgressDeadlineExceeded"]


def test_recreate_waits_until_the_old_pods_are_gone(world: World) -> None:
    deploy(world, strategy={"type": "Recreate"})
    world.change(kinds.DEPLOYMENTS, "d", lambda d: d["spec"].update(template=template("nginx:2")))
    world.settle()
    assert images(world) == ["nginx:2"] * 3


def test_limits_round_as_the_real_controller_does() -> None:
    def limits(replicas: int, surge: Any, unavailable: Any) -> tuple[int, int]:
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
        found = limits_of({"spec": {"replicas": replicas, "strategy": strategy}})
        return found.surge, found.unavailable

    assert limits(3, "25%", "25%") == (1, 0)
    assert limits(10, "25%", "25%") == (3, 2)
    assert limits(1, 0, "0%") == (0, 1)
    assert limits(4, 2, 1) == (2, 1)


def test_template_hash_depends_on_meaning_only() -> None:
    assert template_hash({"a": 1, "b": 2}) == template_hash({"b": 2, "a": 1}) != template_hash({"a": 2, "b": 2})


def test_a_lost_pod_is_replaced_and_a_surplus_one_goes(world: World) -> None:
    deploy(world)
    before = world.names(PODS)
    world.delete(PODS, before[0])
    world.settle()
    assert len(world.names(PODS)) == 3
    assert before[0] not in world.names(PODS)
    world.change(kinds.DEPLOYMENTS, "d", lambda d: d["spec"].update(replicas=1))
    world.settle()
    assert len(world.names(PODS)) == 1


def test_a_replica_set_adopts_and_releases(world: World) -> None:
    pod(world, "orphan", app="d")
    world.create(
        kinds.REPLICA_SETS, "rs", {"replicas": 2, "selector": {"matchLabels": {"app": "d"}}, "template": template()}
    )
    world.settle()
    assert len(world.names(PODS)) == 2
    orphan = world.get(PODS, "orphan")
    assert orphan is not None
    assert orphan["metadata"]["ownerReferences"][0]["name"] == "rs"
    world.change(PODS, "orphan", lambda p: p["metadata"].update(labels={"app": "other"}))
    world.settle()
    assert len(world.names(PODS)) == 3, "the released pod stays, another takes its place"
    replica_set = world.get(kinds.REPLICA_SETS, "rs")
    assert replica_set is not None
    assert replica_set["status"]["replicas"] == 2, "and it is counted no more"


def test_replication_controller(world: World) -> None:
    world.create(kinds.REPLICATION_CONTROLLERS, "rc", {"replicas": 2, "template": template(app="rc")})
    world.settle()
    rc = world.get(kinds.REPLICATION_CONTROLLERS, "rc")
    assert rc is not None
    assert rc["spec"]["selector"] == {"app": "rc"}
    assert rc["status"]["readyReplicas"] == 2


# scheduling


def test_node_selector_and_cordon(world: World) -> None:
    world.change(kinds.NODES, "node-1", lambda n: n["spec"].update(unschedulable=True))
    spec = {
        "containers": [{"name": "c", "image": "x"}],
        "nodeSelector": {"topology.kubernetes.io/zone": "zone-a"},
    }
    world.create(PODS, "picky", spec)
    world.settle()
    picky = world.get(PODS, "picky")
    assert picky is not None
    assert "nodeName" not in picky["spec"]
    message = picky["status"]["conditions"][0]["message"]
    assert message.startswith("0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match")
    world.change(kinds.NODES, "node-1", lambda n: n["spec"].pop("unschedulable"))
    world.settle()
    picky = world.get(PODS, "picky")
    assert picky is not None
    assert picky["spec"]["nodeName"] == "node-1"


def test_a_pod_on_a_node_ends_in_two_steps(empty: World) -> None:
    """The API marks it; whoever runs the node deletes it again with grace 0."""
    empty.create(kinds.NODES, "node-9")
    spec = {"containers": [{"name": "c", "image": "x"}], "nodeName": "node-9"}
    empty.create(PODS, "p", spec)
    empty.delete(PODS, "p")
    empty.settle()
    going = empty.get(PODS, "p")
    assert going is not None
    assert going["metadata"]["deletionGracePeriodSeconds"] == 30
    empty.delete(PODS, "p", grace_period_s=0)
    assert empty.get(PODS, "p") is None


def test_a_pod_on_a_node_that_is_gone_ends_by_itself(empty: World) -> None:
    empty.create(PODS, "p", {"containers": [{"name": "c", "image": "x"}], "nodeName": "nowhere"})
    empty.delete(PODS, "p")
    empty.settle()
    assert empty.get(PODS, "p") is None


# endpoints


def test_slices_follow_pods(world: World) -> None:
    world.service("s", selector={"app": "d"}, ports=[{"port": 80, "targetPort": "http"}])
    pod(world, "one")
    pod(world, "two")
    world.settle()
    assert world.addresses("s") == ["10.244.0.2", "10.244.1.2"]
    (only,) = world.slices("s")
    assert only["ports"] == [{"name": "", "protocol": "TCP", "port": 8080}]
    assert only["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
    assert {e["zone"] for e in only["endpoints"]} == {"zone-a", "zone-b"}
    world.change(PODS, "one", lambda p: p["metadata"].update(labels={"app": "else"}))
    world.settle()
    assert world.addresses("s") == ["10.244.1.2"]
    world.delete(PODS, "two")
    world.settle()
    (empty_slice,) = world.slices("s")
    assert empty_slice["endpoints"] == []
    world.delete(SERVICES, "s")
    world.settle()
    assert world.slices("s") == []
    assert world.get(kinds.ENDPOINTS, "s") is None


def test_conditions_of_endpoints(empty: World) -> None:
    empty.service("s", selector={"app": "d"})
    empty.service("all", selector={"app": "d"}, publishNotReadyAddresses=True)
    empty.create(kinds.NODES, "node-9")
    spec = {"containers": [{"name": "c", "image": "x"}], "nodeName": "node-9"}
    empty.create(PODS, "p", spec, metadata={"labels": {"app": "d"}})

    def state(word: str) -> None:
        status = {"phase": "Running", "podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}]}
        ready = {"type": "Ready", "status": word, "lastTransitionTime": "2026-01-01T00:00:00Z"}
        empty.change(PODS, "p", lambda p: p["status"].update(status, conditions=[ready]), "status")
        empty.settle()

    def conditions(service: str) -> tuple[bool, bool, bool]:
        found = empty.slices(service)[0]["endpoints"][0]["conditions"]
        return found["ready"], found["serving"], found["terminating"]

    state("False")
    assert (conditions("s"), conditions("all")) == ((False, False, False), (True, False, False))
    state("True")
    assert (conditions("s"), conditions("all")) == ((True, True, False), (True, True, False))
    empty.delete(PODS, "p")
    empty.settle()
    assert (conditions("s"), conditions("all")) == ((False, True, True), (True, True, True))


def test_at_most_a_hundred_endpoints_a_slice(empty: World) -> None:
    empty.service("big", selector={"app": "d"})
    empty.settle()
    for number in range(150):
        spec = {"containers": [{"name": "c", "image": "x"}], "nodeName": "nowhere"}
        empty.create(PODS, f"p{number:03}", spec, metadata={"labels": {"app": "d"}})
        ip = f"10.244.1.{number + 1}"
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]}
        empty.change(PODS, f"p{number:03}", lambda p, s=status: p["status"].update(s), "status")
    empty.settle()
    assert sorted(len(s["endpoints"]) for s in empty.slices("big")) == [50, 100]
    assert len(empty.addresses("big")) == 150
    written = empty.cluster.store.log(kinds.ENDPOINT_SLICES).end
    empty.delete(PODS, "p007", grace_period_s=0)
    empty.settle()
    assert len(empty.addresses("big")) == 149
    assert empty.cluster.store.log(kinds.ENDPOINT_SLICES).end == written + 1, "one change, one slice written"


def test_pods_with_other_ports_stand_in_another_slice(world: World) -> None:
    pod(world, "named")
    spec = {"containers": [{"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 9090}]}]}
    world.create(PODS, "other", spec, metadata={"labels": {"app": "d"}})
    pod_without = {"containers": [{"name": "c", "image": "x"}]}
    world.create(PODS, "none", pod_without, metadata={"labels": {"app": "d"}})
    world.service("s", selector={"app": "d"}, ports=[{"port": 80, "targetPort": "http"}])
    world.settle()
    ports = sorted(tuple(port["port"] for port in s["ports"]) for s in world.slices("s"))
    assert ports == [(), (8080,), (9090,)]
    endpoints = world.get(kinds.ENDPOINTS, "s")
    assert endpoints is not None
    assert [subset["ports"][0]["port"] for subset in endpoints["subsets"]] == [8080, 9090]


def test_headless_hostname_and_hints(world: World) -> None:
    spec = {"containers": [{"name": "c", "image": "x"}], "hostname": "web-0", "subdomain": "head"}
    world.create(PODS, "web-0", spec, metadata={"labels": {"app": "h"}})
    world.service("head", clusterIP="None", selector={"app": "h"})
    world.service("near", selector={"app": "h"}, trafficDistribution="PreferSameNode")
    world.settle()
    (head,), (near,) = world.slices("head"), world.slices("near")
    assert head["metadata"]["labels"]["service.kubernetes.io/headless"] == ""
    assert head["endpoints"][0]["hostname"] == "web-0"
    assert "hostname" not in near["endpoints"][0]
    assert near["endpoints"][0]["hints"] == {"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "node-1"}]}


def test_hand_made_endpoints_are_mirrored(empty: World) -> None:
    empty.service("hand", ports=[{"port": 80, "targetPort": 9376}])
    subsets = [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}], "ports": [{"port": 9376}]}]
    empty.create(kinds.ENDPOINTS, "hand", subsets=subsets)
    empty.settle()
    assert sorted(s["addressType"] for s in empty.slices("hand")) == ["IPv4", "IPv6"]
    assert empty.addresses("hand") == ["192.0.2.1", "fd00::1"]
    four = next(s for s in empty.slices("hand") if s["addressType"] == "IPv4")
    assert (
        four["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
        == "endpointslicemirroring-controller.k8s.io"
    )
    empty.change(kinds.ENDPOINTS, "hand", lambda e: e["subsets"][0].update(addresses=[{"ip": "192.0.2.9"}]))
    empty.settle()
    assert empty.addresses("hand") == ["192.0.2.9"]
    empty.delete(kinds.ENDPOINTS, "hand")
    empty.settle()
    assert empty.slices("hand") == []


# owners and namespaces


def test_cascades(world: World) -> None:
    deploy(world)
    world.delete(kinds.DEPLOYMENTS, "d", propagation="Orphan")
    world.settle()
    (left,) = world.names(kinds.REPLICA_SETS)
    assert len(world.names(PODS)) == 3
    world.delete(kinds.REPLICA_SETS, left, propagation="Foreground")
    world.settle()
    assert (world.names(kinds.REPLICA_SETS), world.names(PODS)) == ([], [])


def test_a_namespace_is_emptied_and_takes_nothing_new(world: World) -> None:
    registry = world.cluster.registry
    registry.create(kinds.NAMESPACES, "", {"metadata": {"name": "short"}})
    world.settle()
    assert registry.find(kinds.SERVICE_ACCOUNTS, "short", "default") is not None
    held: Object = {"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}
    registry.create(kinds.CONFIG_MAPS, "short", held)
    world.delete(kinds.NAMESPACES, "short")
    world.settle()
    message = world.refused(lambda: registry.create(kinds.CONFIG_MAPS, "short", {"metadata": {"name": "late"}}))
    assert message == (
        'configmaps "late" is forbidden: unable to create new content in namespace short because it is being terminated'
    )
    namespace = registry.find(kinds.NAMESPACES, "", "short")
    assert namespace is not None
    assert namespace["status"]["phase"] == "Terminating"

    def release(obj: Object) -> Object:
        obj["metadata"].pop("finalizers")
        return obj

    registry.update(kinds.CONFIG_MAPS, "short", "held", release)
    world.settle()
    assert registry.find(kinds.NAMESPACES, "", "short") is None


def test_events_are_bounded(world: World) -> None:
    deploy(world, replicas=300)
    for _ in range(4):
        for name in world.names(PODS)[:150]:
            world.delete(PODS, name)
        world.settle()
    assert world.cluster.store.count(kinds.EVENTS) <= 1000


def test_the_clusters_own_service_comes_back(empty: World) -> None:
    for resource in (SERVICES, kinds.ENDPOINTS, kinds.ENDPOINT_SLICES):
        for name in empty.names(resource):
            empty.delete(resource, name)
    empty.settle()
    service = empty.get(SERVICES, "kubernetes")
    assert service is not None
    assert service["spec"]["clusterIP"] == "10.96.0.1"
    assert empty.addresses("kubernetes") == ["192.168.200.1"]
    assert empty.get(kinds.ENDPOINTS, "kubernetes") is not None
