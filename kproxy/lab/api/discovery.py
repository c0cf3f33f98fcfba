"""Discovery: which groups, versions and resources there are, in the old form (one document per group version) and in the aggregated one.

What comes in: the table in `kinds`. What comes out: documents, computed once. kubectl asks for the aggregated form first (since v1.26) and
is told the resources, short names and verbs of everything in two requests.
"""

from __future__ import annotations

from kproxy.lab.api.kinds import GROUPS, RESOURCES, VERBS, Resource
from kproxy.lab.api.values import Object

VERSION = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.3+kproxy-lab",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "python",
    "platform": "linux/amd64",
}


def subresources(resource: Resource) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """The subresources of a resource: name, apiVersion and kind of what they carry, verbs."""
    rows: list[tuple[str, str, str, tuple[str, ...]]] = []
    if resource.has_status:
        rows.append(("status", resource.api_version, resource.kind, ("get", "patch", "update")))
    if resource.has_scale:
        rows.append(("scale", "autoscaling/v1", "Scale", ("get", "patch", "update")))
    if resource.plural == "pods":
        rows.append(("binding", "v1", "Binding", ("create",)))
        rows.append(("eviction", "policy/v1", "Eviction", ("create",)))
        rows.append(("log", "v1", "Pod", ("get",)))
        rows.append(("exec", "v1", "PodExecOptions", ("create", "get")))
        rows.append(("attach", "v1", "PodAttachOptions", ("create", "get")))
    if resource.plural == "namespaces":
        rows.append(("finalize", "v1", "Namespace", ("update",)))
    return rows


def _split(api_version: str) -> tuple[str, str]:
    group, _, version = api_version.rpartition("/")
    return group, version


def _in_group(group: str) -> list[Resource]:
    return [resource for resource in RESOURCES if resource.group == group]


def core_versions(address: str) -> Object:
    """/api."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group(name: str) -> Object:
    """/apis/GROUP."""
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [version], "preferredVersion": version}


def groups() -> Object:
    """/apis."""
    listed = [{k: v for k, v in group(name).items() if k not in ("kind", "apiVersion")} for name in GROUPS]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


def resource_list(name: str) -> Object:
    """/api/v1 or /apis/GROUP/v1."""
    rows: list[Object] = []
    for resource in _in_group(name):
        row: Object = {
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": list(VERBS),
        }
        if resource.short_names:
            row["shortNames"] = list(resource.short_names)
        if resource.categories:
            row["categories"] = list(resource.categories)
        rows.append(row)
        for sub, api_version, kind, verbs in subresources(resource):
            entry: Object = {
                "name": f"{resource.plural}/{sub}",
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": kind,
                "verbs": list(verbs),
            }
            if api_version != resource.api_version:
                entry["group"], entry["version"] = _split(api_version)
            rows.append(entry)
    group_version = f"{name}/v1" if name else "v1"
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": rows}


def aggregated(names: tuple[str, ...], version: str) -> Object:
    """The aggregated document of some groups, as apidiscovery.k8s.io/`version`."""
    items = []
    for name in names:
        rows = [_aggregated_resource(resource) for resource in _in_group(name)]
        versions = [{"version": "v1", "resources": rows, "freshness": "Current"}]
        metadata: Object = {"creationTimestamp": None}
        if name:
            metadata["name"] = name
        items.append({"metadata": metadata, "versions": versions})
    api_version = f"apidiscovery.k8s.io/{version}"
    return {"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items}


def _aggregated_resource(resource: Resource) -> Object:
    row: Object = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(VERBS),
    }
    if resource.short_names:
        row["shortNames"] = list(resource.short_names)
    if resource.categories:
        row["categories"] = list(resource.categories)
    below = []
    for sub, api_version, kind, verbs in subresources(resource):
        group_name, version = _split(api_version)
        response = {"group": group_name, "version": version, "kind": kind}
        below.append({"subresource": sub, "responseKind": response, "verbs": list(verbs)})
    if below:
        row["subresources"] = below
    return row
