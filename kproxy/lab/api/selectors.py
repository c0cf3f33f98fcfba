"""Label and field selectors: parsing what clients write, and matching objects.

What comes in: the query parameters `labelSelector` and `fieldSelector`, or a LabelSelector object. What comes out: predicates over
objects, and ApiError (400) in the API's words where the text cannot be read. Field selectors know only the few fields the real server
indexes per kind (pkg/registry/*/strategy.go at v1.36.3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.status import bad_request
from kproxy.lab.api.values import Object, dig, labels_of

_SET_TERM = re.compile(r"\s*([^\s=!,()]+)\s+(in|notin)\s*\(([^)]*)\)\s*")
_EXISTS_TERM = re.compile(r"\s*(!?)\s*([^\s=!,()]+)\s*")
_EQUALS_TERM = re.compile(r"\s*([^\s=!,()]+)\s*(==|=|!=)\s*([^\s=!,()]*)\s*")

_METADATA_FIELDS = ("metadata.name", "metadata.namespace")
_FIELDS: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "nodes": ("spec.unschedulable",),
    "services": ("spec.clusterIP", "spec.type"),
    "namespaces": ("status.phase",),
    "secrets": ("type",),
    "replicationcontrollers": ("status.replicas",),
    "replicasets.apps": ("status.replicas",),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector. `values` is empty for Exists and DoesNotExist."""

    key: str
    operator: str  # In, NotIn, Exists, DoesNotExist
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a set of labels satisfies this term; a missing label satisfies NotIn."""
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        if self.operator == "In":
            return labels.get(self.key) in self.values if self.key in labels else False
        return labels.get(self.key) not in self.values if self.key in labels else True


Requirements = tuple[Requirement, ...]


def matches_labels(requirements: Requirements, labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy every term."""
    return all(requirement.matches(labels) for requirement in requirements)


def parse_label_selector(text: str) -> Requirements:
    """The terms of `a=b,c!=d,e in (f,g),!h`; ApiError 400 for anything else."""
    requirements: list[Requirement] = []
    position = 0
    while position < len(text):
        for pattern in (_SET_TERM, _EQUALS_TERM, _EXISTS_TERM):
            found = pattern.match(text, position)
            if found and (found.end() == len(text) or text[found.end()] == ","):
                break
        else:
            raise bad_request("unable to parse requirement: " + _complaint(text[position:]))
        requirements.append(_requirement(pattern, found))
        position = found.end() + 1
    return tuple(requirements)


def _complaint(text: str) -> str:
    """What is wrong with a term, as the API's parser says it for the commonest mistakes."""
    words = text.split()
    if len(words) > 2 and words[1] in ("in", "notin"):
        return f"found '{words[2]}' expected: '('"
    if len(words) > 1 and re.fullmatch(r"[^\s=!,()]+", words[0]):
        return f"found '{words[1]}', expected: in, notin, =, ==, !=, gt, lt"
    return f"found '{text[:100]}', expected: identifier"


def _requirement(pattern: re.Pattern[str], found: re.Match[str]) -> Requirement:
    if pattern is _SET_TERM:
        values = frozenset(value.strip() for value in found[3].split(","))
        return Requirement(found[1], "In" if found[2] == "in" else "NotIn", values)
    if pattern is _EQUALS_TERM:
        return Requirement(found[1], "NotIn" if found[2] == "!=" else "In", frozenset((found[3],)))
    return Requirement(found[2], "DoesNotExist" if found[1] else "Exists")


def label_selector(selector: Any) -> Requirements:
    """The terms of a LabelSelector object (`matchLabels`, `matchExpressions`); an empty one matches everything."""
    requirements = [
        Requirement(key, "In", frozenset((value,))) for key, value in dig(selector, "matchLabels", default={}).items()
    ]
    for term in dig(selector, "matchExpressions", default=[]):
        requirements.append(
            Requirement(term.get("key", ""), term.get("operator", ""), frozenset(term.get("values") or ()))
        )
    return tuple(requirements)


def map_selector(selector: Mapping[str, str]) -> Requirements:
    """The terms of a plain map, as Services and replication controllers use it."""
    return tuple(Requirement(key, "In", frozenset((value,))) for key, value in selector.items())


def selector_text(requirements: Requirements) -> str:
    """A selector as text, terms sorted by key as the API prints them."""
    texts = []
    for term in sorted(requirements, key=lambda term: term.key):
        values = sorted(term.values)
        if term.operator == "Exists":
            texts.append(term.key)
        elif term.operator == "DoesNotExist":
            texts.append("!" + term.key)
        elif term.operator == "In" and len(values) == 1:
            texts.append(f"{term.key}={values[0]}")
        else:
            texts.append(f"{term.key} {'in' if term.operator == 'In' else 'notin'} ({','.join(values)})")
    return ",".join(texts)


@dataclass(frozen=True, slots=True)
class FieldTerm:
    """One term of a field selector."""

    path: str
    value: str
    equal: bool


def parse_field_selector(resource: Resource, text: str) -> tuple[FieldTerm, ...]:
    """The terms of `metadata.name=x,status.phase!=y`; ApiError 400 for fields the kind does not index."""
    known = _METADATA_FIELDS + _FIELDS.get(resource.group_resource, ())
    terms: list[FieldTerm] = []
    for part in re.split(r"(?<!\\),", text):
        if not part:
            continue
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", part)
        if found is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path = found[1].strip()
        if path not in known:
            raise bad_request(_unknown_field(resource, path))
        value = re.sub(r"\\([\\,=])", r"\1", found[3])
        terms.append(FieldTerm(path, value, found[2] != "!="))
    return tuple(terms)


def _unknown_field(resource: Resource, path: str) -> str:
    if resource.group_resource in _FIELDS:
        return f"field label not supported: {path}"
    return f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"'


def field_text(obj: Object, path: str) -> str:
    """The value a field selector compares with; absent fields are the empty text, booleans `true` and `false`."""
    if path == "source":
        return str(dig(obj, "source", "component", default="") or dig(obj, "reportingComponent", default=""))
    value = dig(obj, *path.split("."))
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return (
            "false" if path in ("spec.unschedulable", "spec.hostNetwork") else "0" if path == "status.replicas" else ""
        )
    return str(value)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list, watch or deletecollection looks at, besides resource and namespace."""

    labels: Requirements = ()
    fields: tuple[FieldTerm, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether there is nothing to test."""
        return not self.labels and not self.fields

    def matches(self, obj: Object) -> bool:
        """Whether an object is selected."""
        if self.labels and not matches_labels(self.labels, labels_of(obj)):
            return False
        return all((field_text(obj, term.path) == term.value) == term.equal for term in self.fields)


def selection(resource: Resource, parameters: Mapping[str, str]) -> Selection:
    """The selection that the query parameters of a request ask for."""
    labels = parse_label_selector(parameters.get("labelSelector", ""))
    fields = parse_field_selector(resource, parameters.get("fieldSelector", ""))
    return Selection(labels, fields)


Predicate = Callable[[Object], bool]
