"""Which form of an answer a client wants: plain objects, tables for kubectl, or metadata only; JSON or YAML.

What comes in: the Accept header. What comes out: a `Form`, the first in the client's list that this server can produce.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from kproxy.lab.api.status import not_acceptable, unsupported_media_type
from kproxy.lab.api.values import Object, decode, encode

JSON = "application/json"
YAML = "application/yaml"
_KNOWN = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList", "APIGroupDiscoveryList")


@dataclass(frozen=True, slots=True)
class Form:
    """How to answer. `view` is "" for plain objects."""

    media_type: str = JSON
    view: str = ""
    version: str = ""

    def body(self, value: Object) -> bytes:
        """A value in this form's encoding."""
        return render_yaml(value) if self.media_type == YAML else encode(value)


def render_yaml(value: object) -> bytes:
    """A JSON value as YAML."""
    return yaml.safe_dump(value, default_flow_style=False, allow_unicode=True).encode()


class _PlainLoader(yaml.SafeLoader):
    """YAML as JSON: no aliases (a few lines of them unfold to gigabytes, CVE-2019-11253), no dates, names are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (read by the parent class, which declares it so)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        return super().compose_node(parent, index)


def negotiate(accept: str) -> Form:
    """The form to answer in. ApiError 406 when the client accepts nothing this server has."""
    if not accept:
        return Form()
    for choice in accept.split(","):
        media_type, *parameters = (part.strip() for part in choice.split(";"))
        values = dict(part.split("=", 1) for part in parameters if "=" in part)
        if media_type in ("*/*", "application/*"):
            media_type = JSON
        if media_type not in (JSON, YAML):
            continue
        view = values.get("as", "")
        if view and (
            view not in _KNOWN or (view == "APIGroupDiscoveryList" and values.get("v") not in ("v2", "v2beta1"))
        ):
            continue
        return Form(media_type, view, values.get("v", ""))
    raise not_acceptable((JSON, YAML))


def parse_body(body: bytes, content_type: str) -> object:
    """The value in a request body, JSON or YAML. ApiError 415 for other types; msgspec and YAML errors pass through."""
    media_type = content_type.split(";")[0].strip().lower() or JSON
    if media_type in (YAML, "application/apply-patch+yaml"):
        if body[:1] in (b"{", b"["):
            return decode(body)
        value: object = yaml.load(body, _PlainLoader)
        return decode(encode(value))  # names that are no text become text, or are refused
    if media_type.endswith("json"):
        return decode(body)
    raise unsupported_media_type((JSON, YAML))
