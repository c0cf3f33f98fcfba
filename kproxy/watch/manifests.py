"""Objects from manifest files, as if an API server had stored them and kproxy had listed them.

In: paths of YAML or JSON files, or of directories whose *.yaml, *.yml and *.json files are read (not below them, as kubectl); files
may hold several documents and lists (`kind: List`, what `kubectl get -o yaml` prints). Out: `Loaded`, and from it a `Snapshot` with
every kind synced.

What the API server would refuse (a wrong type, an illegal address, an unknown protocol) is a ConfigError with file, line and field. What
it would let through and kproxy does not serve is a Problem. There is no controller here: pods do not become endpoints, nothing is
allocated; only what stands in the files exists. Endpoints objects are mirrored to slices as the controller would, unless the files hold
the slices already (a dump of a cluster has both). Other kinds are counted and passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kproxy.config.documents import Document, read_documents
from kproxy.errors import ConfigError
from kproxy.model.events import Event, Replaced
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Decoded, Kind, Namespace, ObjectKey, Problem, Service
from kproxy.model.snapshot import Snapshot, fold
from kproxy.watch.decode import NO_LABELS, decode_noting, with_labels
from kproxy.watch.fields import shown
from kproxy.watch.mirror import MANAGED_BY, MIRRORING_CONTROLLER, is_mirrored, slices_of_endpoints
from kproxy.watch.wire import Notes

SUFFIXES = (".yaml", ".yml", ".json")
MAX_ERRORS_SHOWN = 10
_KINDS = {
    ("v1", "Service"): Kind.SERVICE,
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind.ENDPOINT_SLICE,
    ("v1", "Node"): Kind.NODE,
    ("v1", "Namespace"): Kind.NAMESPACE,
    ("v1", "Pod"): Kind.POD,
    ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"): Kind.SERVICE_IMPORT,
}
_NAMESPACED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.POD, Kind.SERVICE_IMPORT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What stood in the files. `passed_over`: kinds kproxy has no use for, and how many of each."""

    objects: tuple[Decoded, ...] = ()
    problems: tuple[Problem, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One object in a document; `path` leads to it there (`items[3]` in a list)."""

    document: Document
    path: str
    body: Mapping[str, object]
    kind: str
    api_version: str

    def where(self, path: str = "") -> str:
        joined = f"{self.path}.{path}" if self.path and path else path or self.path
        return self.document.where(joined)


class _Loading:
    """The state of one `load`: objects by key, so that the last of two wins as with `kubectl apply`."""

    def __init__(self, labels: frozenset[str]) -> None:
        self.labels = labels
        self.objects: dict[ObjectKey, Decoded] = {}
        self.places: dict[ObjectKey, str] = {}
        self.problems: list[Problem] = []
        self.errors: list[tuple[str, str]] = []  # where, why
        self.passed_over: Counter[str] = Counter()
        self.endpoints: list[_Entry] = []
        self.slice_owners: set[tuple[object, object, bool]] = (
            set()
        )  # namespace, Service, made by the mirroring controller


def load(paths: Iterable[str | Path], labels: frozenset[str] = NO_LABELS) -> Loaded:
    """Reads all objects in `paths`; raises ConfigError naming file, line and field of the first ten errors.

    labels: keys of the labels that Services and Namespaces keep.
    """
    state = _Loading(labels)
    for file in _files(paths):
        for document in read_documents(file):
            for entry in _entries(document, document.value, ""):
                _take(state, entry)
    for entry in state.endpoints:
        _mirror(state, entry)
    if state.errors:
        _refuse(state.errors)
    objects = tuple(state.objects.values())
    problems = tuple(state.problems) + tuple(problem for item in objects for problem in item.problems)
    return Loaded(objects=objects, problems=problems, passed_over=dict(sorted(state.passed_over.items())))


def _refuse(errors: list[tuple[str, str]]) -> None:
    (where, why), *others = errors
    lines = [why] + [f"{w}: {y}" for w, y in others[: MAX_ERRORS_SHOWN - 1]]
    if len(errors) > MAX_ERRORS_SHOWN:
        lines.append(f"and {len(errors) - MAX_ERRORS_SHOWN} more errors")
    raise ConfigError("\n".join(lines), where=where)


def _files(paths: Iterable[str | Path]) -> Iterator[str]:
    for path in map(str, paths):
        if path != "-" and Path(path).is_dir():
            found = sorted(str(item) for item in Path(path).iterdir() if item.suffix in SUFFIXES and item.is_file())
            if not found:
                raise ConfigError(f"the directory holds no file ending in {', '.join(SUFFIXES)}", where=path)
            yield from found
        else:
            yield path


def _entries(document: Document, body: object, path: str) -> Iterator[_Entry]:
    """The objects of a document, lists taken apart."""
    if not isinstance(body, Mapping):
        raise ConfigError(
            "a Kubernetes object is a mapping with apiVersion, kind and metadata", where=document.where(path)
        )
    facts = []
    for name in ("apiVersion", "kind"):
        value = body.get(name)
        if not isinstance(value, str) or not value:
            at = f"{path}.{name}" if path else name
            raise ConfigError("is missing" if value is None else "must be a text", where=document.where(at))
        facts.append(value)
    api_version, kind = facts
    if kind == "List" or (kind.endswith("List") and "items" in body):
        items = body.get("items") or []
        at = f"{path}.items" if path else "items"
        if not isinstance(items, list):
            raise ConfigError("must be a list", where=document.where(at))
        for index, item in enumerate(items):
            if isinstance(item, Mapping) and kind != "List":  # typed lists may leave the kind of their items out
                item = {"apiVersion": api_version, "kind": kind.removesuffix("List")} | dict(item)
            yield from _entries(document, item, f"{at}[{index}]")
    else:
        yield _Entry(document, path, body, kind, api_version)


def _take(state: _Loading, entry: _Entry) -> None:
    if (entry.api_version, entry.kind) == ("v1", "Endpoints"):
        state.endpoints.append(entry)
        return
    kind = _KINDS.get((entry.api_version, entry.kind))
    if kind is None:
        if entry.api_version == "discovery.k8s.io/v1beta1":
            why = f"{entry.api_version} left the API in 1.25; write discovery.k8s.io/v1"
            raise ConfigError(why, where=entry.where("apiVersion"))
        state.passed_over[entry.kind] += 1
        return
    body = _with_defaults(kind, entry.body)
    if kind is Kind.ENDPOINT_SLICE:
        meta = _mapping(body["metadata"])
        labels = _mapping(meta.get("labels"))
        mirrored = labels.get(MANAGED_BY) == MIRRORING_CONTROLLER
        state.slice_owners.add((meta.get("namespace"), labels.get("kubernetes.io/service-name"), mirrored))
    _decode(state, kind, body, entry)


def _with_defaults(kind: Kind, body: Mapping[str, object]) -> dict[str, object]:
    """`body` with what the API server fills in before kproxy sees an object: the namespace, and the names of slice ports."""
    filled = dict(body)
    meta = body.get("metadata")
    if kind in _NAMESPACED and isinstance(meta, Mapping) and not meta.get("namespace"):
        filled["metadata"] = {**meta, "namespace": "default"}
    elif meta is None:
        filled["metadata"] = {}
    ports = body.get("ports")
    if kind is Kind.ENDPOINT_SLICE and isinstance(ports, list):
        named = [
            {**port, "name": ""} if isinstance(port, Mapping) and port.get("name") is None else port for port in ports
        ]
        filled["ports"] = named
    return filled


def _decode(state: _Loading, kind: Kind, body: Mapping[str, object], entry: _Entry, below: str = "") -> None:
    """Decodes `body`, which stands at `entry` (or at `below` in it), into the state."""
    notes = Notes()
    decoded = with_labels(decode_noting(kind, body, notes), body, state.labels)
    if notes.errors:  # what the decoder did instead ("; it is ignored") does not happen here: the file is refused
        errors = [(path, why.rpartition("; ")[0] or why) for path, why in notes.errors]
        if below:  # the field names are the slice's, not the file's
            state.errors += [(entry.where(below), f"(as EndpointSlice) {path}: {why}") for path, why in errors]
        else:
            state.errors += [(entry.where(path), why) for path, why in errors]
        return
    spare = _unallocated(decoded.object) if isinstance(decoded.object, Service) else []
    reasons = [problem.reason for problem in decoded.problems] + spare
    if decoded.key in state.places:
        reasons.append(f"stands in {state.places[decoded.key]} too; the last one counts")
    state.places[decoded.key] = entry.where()
    name = str(decoded.key.name) if decoded.key.name.namespace else decoded.key.name.name
    problems = tuple(Problem(kind.value, name, f"{reason} ({entry.where()})") for reason in reasons)
    state.objects.pop(decoded.key, None)
    state.objects[decoded.key] = Decoded(
        key=decoded.key, object=decoded.object, problems=problems, resource_version=decoded.resource_version
    )


def _unallocated(service: Service) -> list[str]:
    """What the API server would have allocated, and a file has not."""
    if service.type == "ExternalName" or service.headless:
        return []
    if not service.cluster_ips:
        return [
            "spec.clusterIP: is missing; the API server would allocate one, so write one here to have the Service served"
        ]
    if service.type == "NodePort" and not any(port.node_port for port in service.ports):
        return [
            "spec.ports[].nodePort: is missing; the API server would allocate one, so write one here to have it served"
        ]
    return []


def _mirror(state: _Loading, entry: _Entry) -> None:
    body = _with_defaults(Kind.ENDPOINT_SLICE, entry.body) | {"subsets": entry.body.get("subsets")}
    meta = _mapping(body["metadata"])
    namespace, name = meta.get("namespace"), meta.get("name")
    if not isinstance(name, str) or not name:
        state.errors.append((entry.where("metadata.name"), "is missing or not a text"))
        return
    if not is_mirrored(body) or (namespace, name, True) in state.slice_owners:
        return
    owner = state.objects.get(ObjectKey(Kind.SERVICE, NamespacedName(str(namespace), name)))
    selects = owner is not None and isinstance(owner.object, Service) and bool(owner.object.selector)
    if selects and (namespace, name, False) in state.slice_owners:
        return  # the slices of the pods are here; these Endpoints are their old form
    bad = _misshapen_subset(body.get("subsets"))
    if bad:
        state.errors.append(
            (entry.where(bad), "has the wrong shape: lists of mappings, and a text ip for each address")
        )
        return
    for made, at in slices_of_endpoints(body):
        _decode(state, Kind.ENDPOINT_SLICE, _with_defaults(Kind.ENDPOINT_SLICE, made), entry, at)


def _misshapen_subset(subsets: object) -> str:
    """The path of the first part that is not what Endpoints are made of, or ""."""
    if subsets is None:
        return ""
    if not isinstance(subsets, list):
        return "subsets"
    for index, subset in enumerate(subsets):
        if not isinstance(subset, Mapping):
            return f"subsets[{index}]"
        for name in ("addresses", "notReadyAddresses"):
            items = subset.get(name)
            if items is not None and not isinstance(items, list):
                return f"subsets[{index}].{name}"
            for number, item in enumerate(items or []):
                if not isinstance(item, Mapping) or not isinstance(item.get("ip"), str):
                    return f"subsets[{index}].{name}[{number}]"
    return ""


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def snapshot_of(loaded: Loaded) -> Snapshot:
    """The snapshot of a node that has listed these objects; namespaces that objects lie in exist even where no file says so."""
    by_kind: dict[Kind, list[Decoded]] = {kind: [] for kind in Kind}
    for item in loaded.objects:
        by_kind[item.key.kind].append(item)
    present = {item.key.name.name for item in by_kind[Kind.NAMESPACE]}
    implied = {item.key.name.namespace for item in loaded.objects} - present - {""}
    by_kind[Kind.NAMESPACE] += [
        Decoded(key=ObjectKey(Kind.NAMESPACE, NamespacedName("", name)), object=Namespace(name=name))
        for name in sorted(implied)
    ]
    events: list[Event] = [Replaced(kind, tuple(items)) for kind, items in by_kind.items()]
    return fold(Snapshot(), events)


def describe(loaded: Loaded) -> str:
    """One line about kinds that were passed over, or "": for commands that people run on files."""
    if not loaded.passed_over:
        return ""
    kinds = ", ".join(f"{count} {shown(kind)[1:-1]}" for kind, count in loaded.passed_over.items())
    return f"passed over (kproxy has no use for these kinds, and runs no controllers on files): {kinds}"
