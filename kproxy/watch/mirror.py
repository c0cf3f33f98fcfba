"""Endpoints objects as EndpointSlices, as the mirroring controller writes them.

In: an Endpoints object as parsed mapping. Out: mappings of EndpointSlices. One slice per subset and address family; addresses are
ready, `notReadyAddresses` are not; serving is left unsaid, which means true, as the controller leaves it. At most 1,000 addresses of
a subset are mirrored (the controller's --mirroring-max-endpoints-per-subset). What must not happen here: checking values; the slices
go through the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

SKIP_LABEL = "endpointslice.kubernetes.io/skip-mirror"
LEADER_ANNOTATION = "control-plane.alpha.kubernetes.io/leader"  # a lock of an old election, not endpoints
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MIRRORING_CONTROLLER = "endpointslicemirroring-controller.k8s.io"
MAX_ENDPOINTS_PER_SUBSET = 1000


def is_mirrored(endpoints: Mapping[str, object]) -> bool:
    """Whether the controller would mirror this object at all."""
    meta = _mapping(endpoints.get("metadata"))
    if _mapping(meta.get("labels")).get(SKIP_LABEL) == "true":
        return False
    return LEADER_ANNOTATION not in _mapping(meta.get("annotations"))


def slices_of_endpoints(endpoints: Mapping[str, object]) -> list[tuple[dict[str, object], str]]:
    """The slices, each with the path of the subset it came from."""
    meta = _mapping(endpoints.get("metadata"))
    name = meta.get("name")
    labels = {**_mapping(meta.get("labels")), "kubernetes.io/service-name": name, MANAGED_BY: MIRRORING_CONTROLLER}
    made = []
    for index, subset in enumerate(_list(endpoints.get("subsets"))):
        found = list(_addresses(_mapping(subset)))[:MAX_ENDPOINTS_PER_SUBSET]
        for family in ("IPv4", "IPv6"):
            members = [item for item in found if (":" in str(_list(item["addresses"])[0])) == (family == "IPv6")]
            if members:
                metadata = {
                    "name": f"{str(name)[:230]}-{family.lower()}-{index}",
                    "namespace": meta.get("namespace"),
                    "labels": labels,
                    "annotations": _mapping(meta.get("annotations")),
                }
                body = {"metadata": metadata, "addressType": family, "endpoints": members}
                made.append((body | {"ports": _mapping(subset).get("ports")}, f"subsets[{index}]"))
    return made


def _addresses(subset: Mapping[str, object]) -> Iterator[dict[str, object]]:
    for field, ready in (("addresses", True), ("notReadyAddresses", False)):
        for item in _list(subset.get(field)):
            address = _mapping(item)
            yield {
                "addresses": [address.get("ip")],
                "conditions": {"ready": ready},
                "hostname": address.get("hostname"),
                "nodeName": address.get("nodeName"),
                "targetRef": address.get("targetRef"),
            }


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
