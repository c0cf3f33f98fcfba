"""What a kubelet gives its pods so that they find Services: resolv.conf, environment variables, hosts. Pure.

What comes in: a Pod as the API sent it (raw dictionaries: the agent looks at far more fields than kproxy's model keeps) and the
Services of its namespace. What comes out: the text of the files and a dictionary. Rules: dns.resolver for resolv.conf; for the
variables the kubelet's own, of which only the `_SERVICE_HOST` and `_SERVICE_PORT` pair is Kubernetes' invention, the rest repeats the
links of early Docker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kproxy.dns.resolver import ResolverConfig, pod_config
from kproxy.lab.addressing import CLUSTER_DOMAIN, DNS_SERVICE_IP
from kproxy.model.objects import Kind, Pod
from kproxy.watch.decode import decode

Raw = dict[str, Any]


def resolv_conf(
    pod: Raw,
    *,
    host_nameservers: Sequence[str],
    host_searches: Sequence[str],
    cluster_dns: Sequence[str] = (DNS_SERVICE_IP,),
    domain: str = CLUSTER_DOMAIN,
) -> str:
    """The pod's /etc/resolv.conf by its dnsPolicy and dnsConfig; the node's own values are what Default copies."""
    found = decode(Kind.POD, pod).object
    assert isinstance(found, Pod)  # the API stored it
    node = ResolverConfig(nameservers=tuple(host_nameservers), searches=tuple(host_searches))
    return pod_config(found, node, cluster_dns=cluster_dns, domain=domain).text


def hosts_file(names: Sequence[tuple[str, str]], aliases: Sequence[Raw] = ()) -> str:
    """/etc/hosts: loopback, then (address, names) pairs, then the pod's hostAliases."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{name}" for address, name in names]
    lines += [f"{alias['ip']}\t{' '.join(alias.get('hostnames', ()))}" for alias in aliases]
    return "".join(f"{line}\n" for line in lines)


def pod_hostname(pod: Raw) -> str:
    """What `hostname` prints in the pod: spec.hostname or the pod's name, at most 63 characters."""
    name: str = pod["spec"].get("hostname") or pod["metadata"]["name"]
    return name[:63].rstrip("-.")


def own_names(pod: Raw, domain: str = CLUSTER_DOMAIN) -> str:
    """The names after the pod's own address in its hosts file: with a subdomain, the full name first."""
    hostname, subdomain = pod_hostname(pod), pod["spec"].get("subdomain", "")
    if subdomain:
        return f"{hostname}.{subdomain}.{pod['metadata']['namespace']}.svc.{domain}\t{hostname}"
    return hostname


def service_environment(pod: Raw, services: Iterable[Raw]) -> dict[str, str]:
    """Variables for the Services that exist when the pod starts: those of its namespace, and always default/kubernetes.

    Headless and ExternalName Services have no address to tell and give none. `enableServiceLinks: false` leaves only kubernetes.
    """
    namespace = pod["metadata"]["namespace"]
    links = pod["spec"].get("enableServiceLinks", True)
    variables: dict[str, str] = {}
    for service in sorted(services, key=lambda s: (s["metadata"]["namespace"] == namespace, s["metadata"]["name"])):
        meta, spec = service["metadata"], service.get("spec", {})
        master = meta["namespace"] == "default" and meta["name"] == "kubernetes"
        if not (master or (links and meta["namespace"] == namespace)):
            continue
        address = spec.get("clusterIP", "")
        if address and address != "None" and spec.get("type") != "ExternalName" and spec.get("ports"):
            variables |= _variables_of(meta["name"], address, spec["ports"])
    return variables


def _variables_of(name: str, address: str, ports: Sequence[Raw]) -> dict[str, str]:
    prefix = _variable_name(name)
    variables = {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(ports[0]["port"])}
    for port in ports:
        if port.get("name"):
            variables[f"{prefix}_SERVICE_PORT_{_variable_name(port['name'])}"] = str(port["port"])
    for index, port in enumerate(ports):
        protocol = port.get("protocol", "TCP")
        host = f"[{address}]" if ":" in address else address
        url = f"{protocol.lower()}://{host}:{port['port']}"
        if index == 0:
            variables[f"{prefix}_PORT"] = url
        link = f"{prefix}_PORT_{port['port']}_{protocol}"
        variables |= {
            link: url,
            f"{link}_PROTO": protocol.lower(),
            f"{link}_PORT": str(port["port"]),
            f"{link}_ADDR": address,
        }
    return variables


def _variable_name(name: str) -> str:
    return name.upper().replace("-", "_").replace(".", "_")


_REFERENCE = re.compile(r"\$(\$)?\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces $(NAME) by its value; unknown names stay as written, $$(NAME) is an escaped $(NAME)."""

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)


def container_environment(pod: Raw, service_variables: Mapping[str, str], facts: Mapping[str, str]) -> dict[str, str]:
    """The environment of the pod's first container: Service variables, then its own `env` in order.

    `facts` answers fieldRef paths (metadata.name, status.podIP, …). References to ConfigMaps and Secrets are left out: the lab's pods
    have no use for them.
    """
    variables = dict(service_variables)
    containers = pod["spec"].get("containers") or [{}]
    for entry in containers[0].get("env") or ():
        if "value" in entry:
            variables[entry["name"]] = expand(entry["value"], variables)
        elif reference := (entry.get("valueFrom") or {}).get("fieldRef"):
            variables[entry["name"]] = facts.get(reference.get("fieldPath", ""), "")
    return {"HOSTNAME": pod_hostname(pod), **variables}
