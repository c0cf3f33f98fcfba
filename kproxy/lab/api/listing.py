"""Lists: paging, resourceVersion semantics, and the continue token.

What comes in: a target and its query. What comes out: the records of one page, the revision they are from, and how to go on. The rules
are the API's (reference/using-api/api-concepts "resource versions"): a page after the first shows the state of the first page; when that
is forgotten the client gets 410 with a token that goes on inconsistently.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from kproxy.lab.api.fields import FieldErrors
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.requests import revision, whole_number
from kproxy.lab.api.selectors import selection
from kproxy.lab.api.status import ApiError, bad_request, expired, invalid, too_large_resource_version
from kproxy.lab.api.store import Key, Record, Store
from kproxy.lab.api.values import Object, decode, encode

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue "
    "parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token "
    "results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and "
    "now may show up in the list."
)


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a list."""

    records: list[Record]
    revision: int
    next_token: str = ""
    remaining: int | None = None  # how many more there are, when known

    def metadata(self) -> Object:
        """The list's metadata."""
        metadata: Object = {"resourceVersion": str(self.revision)}
        if self.next_token:
            metadata["continue"] = self.next_token
            if self.remaining is not None:
                metadata["remainingItemCount"] = self.remaining
        return metadata


def list_page(store: Store, resource: Resource, namespace: str, parameters: Mapping[str, str]) -> Page:
    """The page a query asks for; ApiError 400, 410 or 504."""
    token = parameters.get("continue", "")
    limit = whole_number(parameters, "limit") or 0
    selected = selection(resource, parameters)
    after: Key | None = None
    if token:
        at, after = _read_token(token)
        if parameters.get("resourceVersion", "") not in ("", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
        at = at or store.revision
    else:
        at = _revision_to_show(store, parameters)
    try:
        records = store.snapshot(resource, namespace, at)
    except ApiError:
        if not token or after is None:
            raise
        refusal = expired(_TOO_OLD)
        raise _with_token(refusal, _write_token(0, after)) from None
    if after is not None:
        records = [record for record in records if record.key > after]
    if not selected.everything:
        records = [record for record in records if selected.matches(record.object)]
    if limit <= 0 or len(records) <= limit:
        return Page(records, at)
    page = records[:limit]
    remaining = len(records) - limit if selected.everything else None
    return Page(page, at, _write_token(at, page[-1].key), remaining)


def _revision_to_show(store: Store, parameters: Mapping[str, str]) -> int:
    asked = revision(parameters.get("resourceVersion", ""))
    match = parameters.get("resourceVersionMatch", "")
    if match and not parameters.get("resourceVersion"):
        _refuse_options("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided")
    if match == "Exact" and asked == 0:
        _refuse_options("resourceVersionMatch", 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
    if match not in ("", "Exact", "NotOlderThan"):
        errors = FieldErrors()
        errors.not_supported("resourceVersionMatch", match, ("Exact", "NotOlderThan", ""))
        raise invalid("meta.k8s.io", "ListOptions", "", errors)
    if asked > store.revision:
        raise too_large_resource_version(asked, store.revision)
    limited = bool(whole_number(parameters, "limit")) and asked and not match
    return asked if match == "Exact" or limited else store.revision


def _refuse_options(field: str, detail: str) -> None:
    errors = FieldErrors()
    errors.forbidden(field, detail)
    raise invalid("meta.k8s.io", "ListOptions", "", errors)


def _write_token(at: int, after: Key) -> str:
    return (
        base64.urlsafe_b64encode(encode({"v": "meta.k8s.io/v1", "rv": at, "start": list(after)})).decode().rstrip("=")
    )


def _read_token(token: str) -> tuple[int, Key]:
    try:
        value = decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(value["rv"]), (str(value["start"][0]), str(value["start"][1]))
    except (binascii.Error, msgspec.DecodeError, KeyError, TypeError, ValueError, IndexError):
        raise bad_request("invalid continue token: continue key is not valid: illegal base64 data") from None


class _TokenError(ApiError):
    """410 for a continue token, with a token to go on with in the Status' metadata."""

    token = ""

    def status(self) -> Object:
        body = super().status()
        body["metadata"] = {"continue": self.token}
        return body


def _with_token(refusal: ApiError, token: str) -> ApiError:
    error = _TokenError(refusal.code, refusal.reason, refusal.message)
    error.token = token
    return error
