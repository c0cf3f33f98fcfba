"""Makes kproxy/lab/api/structures.json out of Kubernetes' own Go types: `python -m tests.support.structures MODULE_CACHE VERSION`.

What comes in: the folder of the Go modules k8s.io/api and k8s.io/apimachinery (in the Go module cache after tests/peers is built) and their
version, such as v0.36.3. What comes out, on standard output: one line per structure with its fields: type, protobuf number, and the
markers that strategic merge patch and server-side apply go by. Only what the lab's kinds reach is kept. Run again for a newer Kubernetes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

PACKAGES = {
    "core": "api@{v}/core/v1",
    "apps": "api@{v}/apps/v1",
    "discovery": "api@{v}/discovery/v1",
    "networking": "api@{v}/networking/v1",
    "coordination": "api@{v}/coordination/v1",
    "autoscaling": "api@{v}/autoscaling/v1",
    "policy": "api@{v}/policy/v1",
    "meta": "apimachinery@{v}/pkg/apis/meta/v1",
}
ROOTS = (
    "core.Namespace",
    "core.Node",
    "core.Pod",
    "core.Service",
    "core.Endpoints",
    "core.ConfigMap",
    "core.Secret",
    "core.Event",
    "core.ServiceAccount",
    "core.ReplicationController",
    "core.Binding",
    "apps.Deployment",
    "apps.ReplicaSet",
    "discovery.EndpointSlice",
    "networking.Ingress",
    "networking.IngressClass",
    "coordination.Lease",
    "autoscaling.Scale",
    "policy.Eviction",
    "meta.DeleteOptions",
)
LEAVES = {
    "metav1.Time": "time",
    "metav1.MicroTime": "microtime",
    "meta.Time": "time",
    "meta.MicroTime": "microtime",
    "meta.Duration": "string",
    "resource.Quantity": "quantity",
    "intstr.IntOrString": "intorstring",
    "meta.FieldsV1": "fields",
    "runtime.RawExtension": "raw",
    "types.UID": "string",
    "types.NodeName": "string",
}
SCALARS = ("string", "bool", "int32", "int64", "float64", "byte", "int", "uint32", "uint64")
FIELD = re.compile(r"^\t(?:\w+[ \t]+)?([\w.\[\]*]+)[ \t]+`(.*)`")
PREFIX = {"v1": "core", "metav1": "meta", "corev1": "core", "appsv1": "apps"}


class Reader:
    """The structures and aliases of all packages."""

    def __init__(self) -> None:
        self.structures: dict[str, list[dict[str, Any]]] = {}
        self.aliases: dict[str, str] = {}
        self.markers: dict[str, dict[str, Any]] = {}

    def read(self, package: str, text: str) -> None:
        """Read one types.go."""
        for found in re.finditer(r"^type (\w+) ([\w.\[\]*]+)$", text, re.M):
            self.aliases[f"{package}.{found[1]}"] = found[2]
        for found in re.finditer(r"((?:^//[^\n]*\n)*)^type (\w+) struct \{\n(.*?)^\}", text, re.M | re.S):
            name = f"{package}.{found[2]}"
            self.structures[name] = self._fields(found[3])
            self.markers[name] = {"structType": m[1]} if (m := re.search(r"\+structType=(\w+)", found[1])) else {}

    def _fields(self, body: str) -> list[dict[str, Any]]:
        fields, markers = [], {}
        for line in body.splitlines():
            marker = re.match(r"^\t//\s*\+(listType|listMapKey|mapType|structType)=(\w+)", line)
            if marker:
                markers.setdefault(marker[1], []).append(marker[2])
                continue
            found = FIELD.match(line)
            if not found:
                if not line.strip():
                    markers = {}
                continue
            tags = dict(re.findall(r'(\w+):"([^"]*)"', found[2]))
            if "json" in tags and tags["json"] != "-":
                fields.append({"go": found[1], "tags": tags, "markers": markers})
            markers = {}
        return fields

    def resolve(self, package: str, text: str) -> tuple[str, str]:
        """A Go type as (our type, Go's own name for it)."""
        if text in LEAVES:
            return LEAVES[text], text
        if "." in text:
            prefix, name = text.split(".")
            package, text = PREFIX[prefix], name
        if text in SCALARS:
            return ("int32" if text == "int" else text), text
        full = f"{package}.{text}"
        if full in LEAVES:
            return LEAVES[full], full
        if full in self.structures:
            return "@" + full, f"v1.{text}"
        alias = self.aliases[full]
        return self.type_of(package, alias)[0], f"v1.{text}"

    def type_of(self, package: str, text: str) -> tuple[str, str]:
        """Lists, maps and pointers around a resolved type."""
        if text.startswith("*"):
            inner, go = self.type_of(package, text[1:])
            return "*" + inner, go
        if text == "[]byte":
            return "bytes", "[]uint8"
        if text.startswith("[]"):
            inner, go = self.type_of(package, text[2:])
            return "[]" + inner, "[]" + go
        if text.startswith("map["):
            key, value = text[4:].split("]", 1)
            inner, go = self.type_of(package, value)
            return "{}" + inner, f"map[{key}]{go}"
        return self.resolve(package, text)

    def describe(self, name: str) -> dict[str, Any]:
        """One structure's fields, inlined structures by reference."""
        package = name.split(".")[0]
        described: dict[str, Any] = {}
        for field in self.structures[name]:
            tags, markers = field["tags"], field["markers"]
            kind, go = self.type_of(package, field["go"])
            parts = tags["json"].split(",")
            proto = tags.get("protobuf", "").split(",")
            number = int(proto[1]) if len(proto) > 1 else 0
            inline = "inline" in parts[1:] or not parts[0]
            if inline and kind == "@meta.TypeMeta":
                described["apiVersion"], described["kind"] = ["string", 0], ["string", 0]
                continue
            extra: dict[str, Any] = {}
            if go not in SCALARS and kind.lstrip("*") in SCALARS:
                extra["go"] = go
            if "patchStrategy" in tags:
                extra["patch"] = tags["patchStrategy"]
            if "patchMergeKey" in tags:
                extra["mergeKey"] = tags["patchMergeKey"]
            for marker, short in (("listType", "list"), ("mapType", "map"), ("structType", "map")):
                if marker in markers:
                    extra[short] = markers[marker][0]
            base = kind.lstrip("*")
            if base.startswith("@") and "structType" in self.markers.get(base[1:], {}):
                extra["map"] = self.markers[base[1:]]["structType"]
            if "listMapKey" in markers:
                extra["keys"] = markers["listMapKey"]
            if "omitempty" not in parts and not inline and "omitzero" not in parts:
                extra["always"] = True
            if "omitzero" in parts:
                extra["omitzero"] = True
            key = "<" + kind.lstrip("@*").split(".")[1] if inline else parts[0]
            described[key] = [kind, number, extra] if extra else [kind, number]
        return described


def main() -> None:
    """Write the table of every structure the roots reach."""
    cache, version = Path(sys.argv[1]) / "k8s.io", sys.argv[2]
    reader = Reader()
    for package, folder in PACKAGES.items():
        for path in sorted((cache / folder.format(v=version)).glob("*.go")):
            if path.name == "types.go":
                reader.read(package, path.read_text())
    wanted, found = list(ROOTS), {}
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = reader.describe(name)
        for field in found[name].values():
            for reference in re.findall(r"@(\w+\.\w+)", field[0]):
                wanted.append(reference)
    lines = [f"{json.dumps(name)}:{json.dumps(found[name], separators=(',', ':'))}" for name in sorted(found)]
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
