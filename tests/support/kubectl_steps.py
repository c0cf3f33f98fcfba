"""The kubectl script that the lab's API server and the real kube-apiserver must answer alike.

Each section is a list of steps in its own namespace; the names of the steps say what is to be seen. Pods do not run here: two nodes are
registered by hand and pods get their status by hand, as an agent would write it.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.kubectl_script import Step


def manifest(kind: str, name: str, spec: Any, api_version: str = "v1", **metadata: Any) -> str:
    """One object as JSON, which is YAML too."""
    return json.dumps({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec})


def service(name: str, **spec: Any) -> str:
    """A Service."""
    return manifest("Service", name, spec)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


HTTP = [{"port": 80}]
SLICES_OF = "endpointslices -l kubernetes.io/service-name="
FIRST = "{.items[0].endpoints"
NODE_STATUS = {
    "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ok"}]}
}


def running(ip: str, *, ready: bool = True) -> str:
    """The status patch an agent writes when a pod runs."""
    word = "True" if ready else "False"
    conditions = [{"type": kind, "status": word} for kind in ("Ready", "ContainersReady")]
    container = {"name": "c", "image": "nginx", "imageID": "x", "ready": ready, "restartCount": 0}
    container["state"] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    status = {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": conditions,
        "containerStatuses": [container],
    }
    return _compact({"status": status})


def pod(name: str, labels: dict[str, str], **spec: Any) -> str:
    """A pod with one container and a named port."""
    container = {"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 8080}]}
    return manifest("Pod", name, {"containers": [container], **spec}, labels=labels)


NODES = [
    Step("node is created", "create -f -", manifest("Node", "node-1", {}, labels={"topology.kubernetes.io/zone": "a"})),
    Step("node gets its status", f"patch node node-1 --subresource=status --type=merge -p {_compact(NODE_STATUS)}"),
    Step("node loses its taints", "taint nodes node-1 node.kubernetes.io/not-ready:NoSchedule-", compared=False),
    Step("node table", "get nodes -o wide"),
]

SERVICES = [
    Step("create service", "create -f -", service("plain", ports=HTTP, selector={"a": "b"})),
    Step("create service again", "create -f -", service("plain", ports=HTTP)),
    Step("service yaml", "get service plain -o yaml"),
    Step("service table", "get services"),
    Step("service table wide", "get services -o wide"),
    Step("service names", "get services -o name"),
    Step("describe service", "describe service plain"),
    Step("chosen address", "create -f -", service("chosen", clusterIP="10.96.77.1", ports=HTTP)),
    Step("chosen address taken", "create -f -", service("taken", clusterIP="10.96.77.1", ports=HTTP)),
    Step("address outside the range", "create -f -", service("outside", clusterIP="10.0.0.1", ports=HTTP)),
    Step("address that is none", "create -f -", service("none", clusterIP="10.96.77", ports=HTTP)),
    Step("headless", "create -f -", service("headless", clusterIP="None", ports=HTTP, selector={"a": "b"})),
    Step("headless without selector", "create -f -", service("bare", clusterIP="None", ports=HTTP)),
    Step("headless without selector yaml", "get service bare -o yaml"),
    Step("headless table", "get services headless"),
    Step("external name", "create -f -", service("extern", type="ExternalName", externalName="example.com")),
    Step("external name table", "get service extern"),
    Step("external name yaml", "get service extern -o yaml"),
    Step("external name without name", "create -f -", service("extern2", type="ExternalName")),
    Step("node port", "create -f -", service("node", type="NodePort", ports=[{"port": 80, "nodePort": 30077}])),
    Step("node port table", "get service node"),
    Step("node port taken", "create -f -", service("node2", type="NodePort", ports=[{"port": 80, "nodePort": 30077}])),
    Step("node port outside", "create -f -", service("node2", type="NodePort", ports=[{"port": 80, "nodePort": 80}])),
    Step("node port of a ClusterIP", "create -f -", service("node2", ports=[{"port": 80, "nodePort": 30078}])),
    Step("load balancer", "create -f -", service("lb", type="LoadBalancer", ports=HTTP, externalTrafficPolicy="Local")),
    Step("load balancer yaml", "get service lb -o yaml"),
    Step("multi port", "create -f -", service("multi", ports=[{"name": "a", "port": 80}, {"name": "b", "port": 8888}])),
    Step("multi port table", "get service multi"),
    Step("multi port unnamed", "create -f -", service("multi2", ports=[{"port": 80}, {"port": 8888}])),
    Step(
        "multi port same name", "create -f -", service("m", ports=[{"name": "a", "port": 1}, {"name": "a", "port": 2}])
    ),
    Step("same port twice", "create -f -", service("m", ports=[{"name": "a", "port": 1}, {"name": "b", "port": 1}])),
    Step("port zero", "create -f -", service("m", ports=[{"port": 0}])),
    Step("port too large", "create -f -", service("m", ports=[{"port": 65536, "targetPort": 70000}])),
    Step("port is text", "create -f -", service("m", ports=[{"port": "http"}])),
    Step(
        "target port badly named",
        "create -f -",
        service("m", ports=[{"port": 80, "targetPort": "UPPER_CASE_and_much_too_long"}]),
    ),
    Step("unknown protocol", "create -f -", service("m", ports=[{"port": 80, "protocol": "ICMP"}])),
    Step("no ports", "create -f -", service("m")),
    Step("unknown type", "create -f -", service("m", type="Magic", ports=HTTP)),
    Step("bad name", "create -f -", service("Bad_Name", ports=HTTP)),
    Step("unknown field", "create -f -", service("m", ports=[{"port": 80, "prot": "TCP"}], selektor={"a": "b"})),
    Step("unknown field, warned", "create --validate=warn -f -", service("warned", ports=HTTP, selektor={"a": "b"})),
    Step("affinity", "create -f -", service("sticky", ports=HTTP, sessionAffinity="ClientIP")),
    Step("affinity yaml", "get service sticky -o yaml"),
    Step(
        "affinity too long",
        "create -f -",
        service(
            "m", ports=HTTP, sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 100000}}
        ),
    ),
    Step("external IPs", "create -f -", service("ext", ports=HTTP, externalIPs=["192.168.200.21", "192.168.200.22"])),
    Step("external IPs table", "get service ext"),
    Step("external IP loopback", "create -f -", service("m", ports=HTTP, externalIPs=["127.0.0.1"])),
    Step(
        "source ranges of a ClusterIP", "create -f -", service("m", ports=HTTP, loadBalancerSourceRanges=["10.0.0.0/8"])
    ),
    Step(
        "source range with host bits",
        "create -f -",
        service("m", type="LoadBalancer", ports=HTTP, loadBalancerSourceRanges=["10.0.0.1/8"]),
    ),
    Step("external policy of a ClusterIP", "create -f -", service("m", ports=HTTP, externalTrafficPolicy="Local")),
    Step("traffic distribution", "create -f -", service("m", ports=HTTP, trafficDistribution="Nearest")),
    Step("dual stack here", "create -f -", service("m", ports=HTTP, ipFamilyPolicy="RequireDualStack")),
    Step("IPv6 here", "create -f -", service("m", ports=HTTP, ipFamilies=["IPv6"])),
    Step("bad selector", "create -f -", service("m", ports=HTTP, selector={"a": "not valid!"})),
    Step("not found", "get service absent"),
    Step("change address", f"patch service chosen -p {_compact({'spec': {'clusterIP': '10.96.77.9'}})}"),
    Step("to node port", f"patch service plain -p {_compact({'spec': {'type': 'NodePort'}})}"),
    Step("to node port yaml", "get service plain -o yaml"),
    Step("back to cluster IP", f"patch service plain -p {_compact({'spec': {'type': 'ClusterIP'}})}"),
    Step("back to cluster IP yaml", "get service plain -o yaml"),
    Step(
        "to external name",
        f"patch service plain -p {_compact({'spec': {'type': 'ExternalName', 'externalName': 'example.com'}})}",
    ),
    Step("to external name yaml", "get service plain -o yaml"),
    Step("from external name", f"patch service plain -p {_compact({'spec': {'type': 'ClusterIP'}})}"),
    Step("from external name yaml", "get service plain -o yaml"),
    Step(
        "external IPs patched",
        f"patch service node -p {_compact({'spec': {'externalIPs': ['192.168.200.21', '192.168.200.22', '192.168.200.23']}})}",
    ),
    Step("external IPs patched table", "get service node"),
    Step("delete service", "delete service node"),
    Step(
        "port is free again", "create -f -", service("node3", type="NodePort", ports=[{"port": 80, "nodePort": 30077}])
    ),
    Step("create command clusterip", "create service clusterip cmd --tcp=80:8080"),
    Step("create command nodeport", "create service nodeport cmdnp --tcp=80:8080 --node-port=30079"),
    Step("create command loadbalancer", "create service loadbalancer cmdlb --tcp=80"),
    Step("create command externalname", "create service externalname cmdex --external-name=example.com"),
    Step("selector by label", "get services -l app=cmd -o name"),
    Step("selector set based", "get services -l app,app!=cmd -o name --sort-by=.metadata.name"),
    Step("field selector", "get services --field-selector spec.type=ExternalName -o name"),
    Step("field selector unknown", "get services --field-selector spec.foo=1"),
    Step("field selector unknown elsewhere", "get configmaps --field-selector spec.foo=1"),
]

PATCHES = [
    Step("apply creates", "apply -f -", service("web", ports=[{"port": 80, "name": "http"}], selector={"app": "web"})),
    Step(
        "apply unchanged", "apply -f -", service("web", ports=[{"port": 80, "name": "http"}], selector={"app": "web"})
    ),
    Step(
        "apply configured",
        "apply -f -",
        service("web", ports=[{"port": 80, "name": "http"}, {"port": 90, "name": "other", "targetPort": 80}]),
    ),
    Step("apply result", "get service web -o yaml"),
    Step("apply removes port", "apply -f -", service("web", ports=[{"port": 90, "name": "other", "targetPort": 80}])),
    Step("apply removes port result", "get service web -o yaml"),
    Step(
        "apply with unknown field",
        "apply -f -",
        service("web", ports=[{"port": 90, "name": "other", "targetPort": 80}], foo=1),
    ),
    Step(
        "server-side conflict",
        "apply --server-side --field-manager=other -f -",
        service("web", ports=[{"port": 90, "protocol": "TCP", "name": "renamed", "targetPort": 81}]),
    ),
    Step(
        "server-side forced",
        "apply --server-side --field-manager=other --force-conflicts -f -",
        service("web", ports=[{"port": 90, "protocol": "TCP", "name": "renamed", "targetPort": 81}]),
    ),
    Step("server-side result", "get service web -o yaml"),
    Step(
        "server-side new",
        "apply --server-side -f -",
        service("ssa", ports=[{"port": 80, "protocol": "TCP"}], selector={"a": "b", "c": "d"}),
    ),
    Step("server-side managed fields", "get service ssa -o jsonpath={.metadata.managedFields[0].fieldsV1}"),
    Step(
        "server-side change",
        "apply --server-side -f -",
        service("ssa", ports=[{"port": 81, "protocol": "TCP"}], selector={"a": "b"}),
    ),
    Step("server-side change result", "get service ssa -o yaml"),
    Step("dry run", "apply --dry-run=server -f -", service("dry", ports=HTTP)),
    Step("dry run left nothing", "get service dry"),
    Step("label", "label service web tier=front"),
    Step("label again", "label service web tier=back"),
    Step("label overwrite", "label --overwrite service web tier=back"),
    Step("annotate", "annotate service web note=hello"),
    Step(
        "merge patch",
        f"patch service web --type=merge -p {_compact({'metadata': {'labels': {'tier': None, 'x': 'y'}}})}",
    ),
    Step(
        "json patch",
        f"patch service web --type=json -p {_compact([{'op': 'replace', 'path': '/spec/ports/0/port', 'value': 91}])}",
    ),
    Step(
        "json patch fails", f"patch service web --type=json -p {_compact([{'op': 'remove', 'path': '/spec/absent'}])}"
    ),
    Step(
        "json patch tests",
        f"patch service web --type=json -p {_compact([{'op': 'test', 'path': '/spec/type', 'value': 'X'}])}",
    ),
    Step(
        "strategic patch adds a port",
        f"patch service web -p {_compact({'spec': {'ports': [{'name': 'more', 'port': 92}]}})}",
    ),
    Step(
        "strategic patch deletes a port",
        f"patch service web -p {_compact({'spec': {'ports': [{'$patch': 'delete', 'port': 92}]}})}",
    ),
    Step("patch with unknown field", f"patch service web -p {_compact({'spec': {'foo': 1}})}"),
    Step("patches result", "get service web -o yaml"),
    Step("replace with old version", "replace -f -", manifest("Service", "web", {"ports": HTTP}, resourceVersion="1")),
    Step("replace", "replace -f -", service("web", ports=[{"port": 99}])),
    Step("replace result", "get service web -o jsonpath={.spec.ports[0].port}"),
    Step("replace absent", "replace -f -", service("nothere", ports=HTTP)),
    Step("configmap", "create configmap cm --from-literal=a=1 --from-literal=b=2"),
    Step("configmap table", "get configmap cm"),
    Step("configmap describe", "describe configmap cm"),
    Step("secret", "create secret generic s --from-literal=password=x"),
    Step("secret yaml", "get secret s -o yaml"),
    Step("secret table", "get secret s"),
    Step("bad configmap key", "create configmap bad --from-literal=a/b=1"),
    Step("generate name", "create -f -", '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"gen-"}}'),
    Step("no name", "create -f -", '{"apiVersion":"v1","kind":"ConfigMap","metadata":{}}'),
    Step(
        "other namespace",
        "create -f -",
        '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"default"}}',
    ),
    Step("missing namespace", "-n nowhere create configmap cm"),
    Step("unknown kind", "create -f -", '{"apiVersion":"v1","kind":"Gadget","metadata":{"name":"x"}}'),
]

WORKLOADS = [
    Step("create deployment", "create deployment d --image=nginx --replicas=2 --port=80"),
    Step("deployment yaml", "get deployment d -o jsonpath={.spec}"),
    Step("two pods made", "wait --for=jsonpath={.status.replicas}=2 deployment/d --timeout=10s"),
    Step("deployment table", "get deployment d -o wide"),
    Step("replicaset table", "get replicasets -o wide"),
    Step("pods labels", "get pods -l app=d -o jsonpath={.items[*].metadata.labels.app}"),
    Step("expose deployment", "expose deployment d"),
    Step("expose yaml", "get service d -o jsonpath={.spec.ports}{.spec.selector}"),
    Step("expose named", "expose deployment d --name=d2 --port=8080 --target-port=80 --type=NodePort"),
    Step("scale", "scale deployment d --replicas=3"),
    Step("three pods made", "wait --for=jsonpath={.status.replicas}=3 deployment/d --timeout=10s"),
    Step("scale to none", "scale deployment d --replicas=0"),
    Step("no pods left", "wait --for=jsonpath={.spec.replicas}=0 deployment/d --timeout=10s"),
    Step("empty is rolled out", "rollout status deployment d --timeout=10s"),
    Step("delete deployment", "delete deployment d"),
    Step("its sets are gone", "wait --for=delete replicasets -l app=d --timeout=10s"),
    Step(
        "selector mismatch",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "bad"},
                "spec": {
                    "selector": {"matchLabels": {"a": "b"}},
                    "template": {
                        "metadata": {"labels": {"a": "c"}},
                        "spec": {"containers": [{"name": "c", "image": "x"}]},
                    },
                },
            }
        ),
    ),
    Step(
        "no selector",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "bad"},
                "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}},
            }
        ),
    ),
    Step(
        "no containers",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {"name": "bad"},
                "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}}},
            }
        ),
    ),
    Step(
        "negative replicas",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "ReplicationController",
                "metadata": {"name": "bad"},
                "spec": {
                    "replicas": -1,
                    "template": {
                        "metadata": {"labels": {"a": "b"}},
                        "spec": {"containers": [{"name": "c", "image": "x"}]},
                    },
                },
            }
        ),
    ),
    Step(
        "rc",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "ReplicationController",
                "metadata": {"name": "rc"},
                "spec": {
                    "replicas": 1,
                    "selector": {"a": "rc"},
                    "template": {
                        "metadata": {"labels": {"a": "rc"}},
                        "spec": {"containers": [{"name": "c", "image": "x"}]},
                    },
                },
            }
        ),
    ),
    Step("rc makes a pod", "wait --for=jsonpath={.status.replicas}=1 rc/rc --timeout=10s"),
    Step("rc table", "get rc -o wide"),
    Step("rc delete leaving pods", "delete rc rc --cascade=orphan"),
    Step("rc pods left", "get pods -l a=rc -o jsonpath={.items[*].metadata.ownerReferences}"),
    Step(
        "bad pod",
        "create -f -",
        manifest(
            "Pod",
            "bad",
            {
                "containers": [
                    {"name": "C", "image": "x", "ports": [{"containerPort": 0, "name": "much-too-long-a-name"}]},
                    {"name": "b"},
                ],
                "restartPolicy": "Sometimes",
            },
        ),
    ),
    Step("run", "run runner --image=busybox --restart=Never --labels=a=run"),
    Step(
        "run yaml",
        "get pod runner -o jsonpath={.spec.containers[0].imagePullPolicy}{.spec.restartPolicy}{.spec.dnsPolicy}{.status.qosClass}",
    ),
    Step("change a pod", f"patch pod runner -p {_compact({'spec': {'restartPolicy': 'Always'}})}", lines=1),
]

ENDPOINTS = [
    Step("pod", "create -f -", pod("one", {"app": "e"}, hostname="one", subdomain="named", nodeName="node-1")),
    Step("pod table", "get pod one"),
    Step("pod runs", f"patch pod one --subresource=status -p {running('10.244.0.5')}"),
    Step("pod table ready", "get pod one -o wide"),
    Step("second pod", "create -f -", pod("two", {"app": "e"}, nodeName="node-1")),
    Step("second pod not ready", f"patch pod two --subresource=status -p {running('10.244.0.6', ready=False)}"),
    Step(
        "service",
        "create -f -",
        service("named", ports=[{"port": 80, "targetPort": "http", "name": "web"}], selector={"app": "e"}),
    ),
    Step(
        "endpoints appear", "wait --for=jsonpath={.subsets[0].addresses[0].ip}=10.244.0.5 endpoints/named --timeout=10s"
    ),
    Step("endpoints table", "get endpoints named"),
    Step("endpoints yaml", "get endpoints named -o jsonpath={.subsets}{.metadata.labels}"),
    Step(
        "slice appears",
        "wait --for=jsonpath={.endpoints[0].addresses[0]} endpointslices -l kubernetes.io/service-name=named --timeout=10s",
    ),
    Step(
        "slice ports",
        "get endpointslices -l kubernetes.io/service-name=named -o jsonpath={.items[0].ports}{.items[0].metadata.labels}",
    ),
    Step(
        "slice endpoints",
        "get "
        + SLICES_OF
        + "named -o jsonpath="
        + FIRST  # the real controller has no order among a slice's endpoints
        + "[?(@.conditions.ready==true)].conditions}"
        + FIRST
        + "[?(@.conditions.ready==false)].conditions}"
        + FIRST
        + "[*].hostname}"
        + FIRST
        + "[*].zone}",
    ),
    Step("describe service with endpoints", "describe service named"),
    Step("second pod ready", f"patch pod two --subresource=status -p {running('10.244.0.6')}"),
    Step(
        "both addresses", "wait --for=jsonpath={.subsets[0].addresses[1].ip}=10.244.0.6 endpoints/named --timeout=10s"
    ),
    Step("endpoints table of two", "get endpoints named"),
    Step("pod is going", "delete pod two --wait=false"),
    Step("pod table terminating", "get pod two"),
    Step("pod is gone", "delete pod two --grace-period=0 --force"),
    Step("one address", "wait --for=jsonpath={.subsets[0].addresses[0].ip}=10.244.0.5 endpoints/named --timeout=10s"),
    Step("service by hand", "create -f -", service("hand", ports=[{"port": 80, "targetPort": 9376}])),
    Step(
        "endpoints by hand",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": {"name": "hand"},
                "subsets": [{"addresses": [{"ip": "192.168.200.100"}], "ports": [{"port": 9376}]}],
            }
        ),
    ),
    Step(
        "mirrored slice",
        "wait --for=jsonpath={.endpoints[0].addresses[0]}=192.168.200.100 " + SLICES_OF + "hand --timeout=10s",
    ),
    Step(
        "mirrored slice yaml",
        "get " + SLICES_OF + "hand -o jsonpath=" + FIRST + "}{.items[0].ports}{.items[0].metadata.labels}",
    ),
    Step("describe service by hand", "describe service hand"),
    Step(
        "bad endpoints",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": {"name": "bad"},
                "subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 0}]}],
            }
        ),
    ),
    Step(
        "bad slice",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "bad"},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": []}],
                "ports": [{"port": 99999}],
            }
        ),
    ),
    Step("distribution", f"patch service named -p {_compact({'spec': {'trafficDistribution': 'PreferSameNode'}})}"),
    Step(
        "hints",
        "wait --for=jsonpath={.endpoints[0].hints.forNodes[0].name}=node-1 " + SLICES_OF + "named --timeout=10s",
    ),
    Step(
        "hints yaml",
        "get endpointslices -l kubernetes.io/service-name=named -o jsonpath={.items[0].endpoints[*].hints}",
    ),
    Step("ingress", "create ingress i --class=c --rule=foo.bar/path*=named:80"),
    Step("ingress table", "get ingress i"),
    Step("ingress yaml", "get ingress i -o yaml"),
    Step("ingress describe", "describe ingress i"),
    Step(
        "bad ingress",
        "create -f -",
        json.dumps(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "Ingress",
                "metadata": {"name": "bad"},
                "spec": {
                    "rules": [
                        {"host": "10.0.0.1", "http": {"paths": [{"path": "x", "backend": {"service": {"name": "n"}}}]}}
                    ]
                },
            }
        ),
    ),
    Step("delete all", "delete services,ingresses,pods --all --force --grace-period=0"),
    Step("no slices left", "wait --for=delete endpointslices --all --timeout=10s"),
]

# lines=0: the code alone, where the rest of the message is the JSON library's own.
_HERE = "get --raw /api/v1/namespaces/NAMESPACE/configmaps"

RAW = [
    Step("no such path", "get --raw /api/v1/nowhere"),
    Step("no such group", "get --raw /apis/nowhere.example.com/v1"),
    Step("no such version", "get --raw /apis/apps/v9/deployments"),
    Step("no such object", _HERE + "/absent"),
    Step("no such subresource", "get --raw /api/v1/namespaces/NAMESPACE/services/kubernetes/nothing"),
    Step("bad limit", _HERE + "?limit=many"),
    Step("bad continue", _HERE + "?continue=nonsense", lines=0),
    Step("bad version", _HERE + "?resourceVersion=new"),
    Step("version match alone", _HERE + "?resourceVersionMatch=Exact"),
    Step("exact zero", _HERE + "?resourceVersion=0&resourceVersionMatch=Exact"),
    Step("unknown version match", _HERE + "?resourceVersion=1&resourceVersionMatch=Roughly"),
    Step("bad label selector", _HERE + "?labelSelector=a+b"),
    Step("bad set selector", _HERE + "?labelSelector=a%20in%20b"),
    Step("bad field selector", _HERE + "?fieldSelector=metadata.name"),
    Step("watch with version match", _HERE + "?watch=1&resourceVersionMatch=NotOlderThan"),
    Step("streaming without match", _HERE + "?watch=1&sendInitialEvents=true"),
    Step("watch bad version", _HERE + "?watch=1&resourceVersion=new"),
    Step("empty list", "get --raw /api/v1/namespaces/NAMESPACE/secrets", lines=0),
    Step("groups known", "get --raw /apis/apps"),
    Step("scale of a deployment that is not", "get --raw /apis/apps/v1/namespaces/NAMESPACE/deployments/none/scale"),
    Step("health", "get --raw /readyz"),
    Step("create at a name", "create --raw /api/v1/namespaces/NAMESPACE/configmaps/x -f -", "{}"),
    Step("create nothing", "create --raw /api/v1/namespaces/NAMESPACE/configmaps -f -", "", lines=0),
    Step("create a list", "create --raw /api/v1/namespaces/NAMESPACE/configmaps -f -", "[]", lines=0),
    Step("create no JSON", "create --raw /api/v1/namespaces/NAMESPACE/configmaps -f -", "{", lines=0),
    Step("create another kind", "create --raw /api/v1/namespaces/NAMESPACE/configmaps -f -", pod("p", {})),
    Step(
        "create with a version",
        "create --raw /api/v1/namespaces/NAMESPACE/configmaps -f -",
        manifest("ConfigMap", "v", None, resourceVersion="7"),
    ),
    Step(
        "replace another name",
        "replace --raw /api/v1/namespaces/NAMESPACE/configmaps/a -f -",
        manifest("ConfigMap", "b", None),
    ),
    Step("delete absent", "delete --raw /api/v1/namespaces/NAMESPACE/configmaps/absent"),
    Step("delete with bad grace", "delete --raw /api/v1/namespaces/NAMESPACE/configmaps/absent?gracePeriodSeconds=x"),
]

SECTIONS: dict[str, list[Step]] = {
    "raw": RAW,
    "services": SERVICES,
    "patches": PATCHES,
    "workloads": WORKLOADS,
    "endpoints": [*NODES, *ENDPOINTS],
}
