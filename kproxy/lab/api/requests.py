"""What a request asks for, read from its method, path and query: no HTTP library in sight.

What comes in: method, path, query parameters. What comes out: a `Target` (resource, namespace, name, subresource) or ApiError 404 for paths
that are none of the API's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kproxy.lab.api.kinds import BY_PATH, NAMESPACES, Resource
from kproxy.lab.api.status import ApiError, bad_request, no_such_path

TRUE_WORDS = ("1", "true", "True", "t", "T", "TRUE")


@dataclass(frozen=True, slots=True)
class Target:
    """What a path denotes. `name` is empty for a collection, `namespace` for all namespaces or a cluster's own kind."""

    resource: Resource
    namespace: str
    name: str
    subresource: str
    watch: bool = False  # the old form /api/v1/watch/…


def parse_path(path: str) -> Target:
    """The target of `/api/v1/…` or `/apis/GROUP/VERSION/…`; ApiError 404 for anything else."""
    parts = [part for part in path.split("/") if part]
    if len(parts) >= 2 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 3 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise no_such_path()
    watch = bool(rest) and rest[0] == "watch"
    if watch:
        rest = rest[1:]
    namespace = ""
    if len(rest) >= 3 and rest[0] == "namespaces" and (group or rest[2] not in ("status", "finalize")):
        namespace, rest = rest[1], rest[2:]
    if not rest:
        raise no_such_path()
    resource = BY_PATH.get((group, version, rest[0]))
    if resource is None or len(rest) > 3:
        raise no_such_path()
    if namespace and not resource.namespaced and resource is not NAMESPACES:
        raise no_such_path()
    name = rest[1] if len(rest) > 1 else ""
    if name and resource.namespaced and not namespace:
        raise no_such_path()
    return Target(resource, namespace, name, rest[2] if len(rest) > 2 else "", watch)


def flag(parameters: Mapping[str, str], name: str) -> bool:
    """A boolean query parameter."""
    return parameters.get(name, "") in TRUE_WORDS


def whole_number(parameters: Mapping[str, str], name: str) -> int | None:
    """A numeric query parameter; ApiError 400 when it is no number, None when absent."""
    text = parameters.get(name, "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def revision(text: str, *, watch: bool = False) -> int:
    """A resourceVersion; ApiError when it is no number: 400 for a list, and for a watch, as the real server does, 500."""
    try:
        number = int(text or "0")
    except ValueError:
        number = -1
    if number < 0:
        problem = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise ApiError(500, "", problem) if watch else bad_request("invalid resource version: " + problem)
    return number


def is_dry_run(parameters: Mapping[str, str]) -> bool:
    """`dryRun=All`; any other value is an error."""
    value = parameters.get("dryRun", "")
    if value not in ("", "All"):
        raise bad_request(f'Invalid value: "{value}": supported values: "All"')
    return value == "All"
