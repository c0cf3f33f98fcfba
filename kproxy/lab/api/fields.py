"""Errors about fields, worded as k8s.io/apimachinery pkg/util/validation/field does (v0.36.3), and the checks that many kinds share.

What comes in: a path such as `spec.ports[0].port`, the bad value, a reason. What comes out: lines and `causes` of an Invalid status.
Since v1.36 a value that is neither text nor number is shown as JSON.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kproxy.lab.api.values import Object, encode

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
PORT_NAME = re.compile(r"[-a-z0-9]+")
CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")

LABEL_MESSAGE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN_MESSAGE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with "
    "an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
QUALIFIED_MESSAGE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    "(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
LABEL_VALUE_MESSAGE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
CONFIG_KEY_MESSAGE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', "
    "regex used for validation is '[-._a-zA-Z0-9]+')"
)

_WORDS = {
    "FieldValueNotFound": "Not found",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueNotSupported": "Unsupported value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueTooLong": "Too long",
    "FieldValueTooMany": "Too many",
}
_VALUELESS = ("FieldValueRequired", "FieldValueForbidden", "FieldValueTooLong")


def quoted(text: str) -> str:
    """Go's %q for the texts that occur here."""
    return encode(text).decode()


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field."""

    reason: str
    path: str
    body: str

    def __str__(self) -> str:
        return f"{self.path}: {self.body}"


class FieldErrors:
    """The errors of one object, in the order found."""

    def __init__(self) -> None:
        self._errors: list[FieldError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def __len__(self) -> int:
        return len(self._errors)

    def texts(self) -> list[str]:
        """One line per error; the same error twice is said once."""
        return list(dict.fromkeys(str(error) for error in self._errors))

    def causes(self) -> list[Object]:
        """The `details.causes` of the Status."""
        return [{"reason": error.reason, "message": error.body, "field": error.path} for error in self._errors]

    def extend(self, other: FieldErrors) -> None:
        """Take over the errors of another collection."""
        self._errors.extend(other._errors)

    def _add(self, reason: str, path: str, value: Any, detail: str) -> None:
        body = _WORDS[reason]
        if reason not in _VALUELESS:
            body += ": " + encode(value).decode()
        if detail:
            body += ": " + detail
        self._errors.append(FieldError(reason, path, body))

    def required(self, path: str, detail: str = "") -> None:
        """A value is missing."""
        self._add("FieldValueRequired", path, None, detail)

    def invalid(self, path: str, value: Any, detail: str) -> None:
        """A value is malformed."""
        self._add("FieldValueInvalid", path, value, detail)

    def duplicate(self, path: str, value: Any) -> None:
        """A value that must be unique occurs again."""
        self._add("FieldValueDuplicate", path, value, "")

    def not_supported(self, path: str, value: Any, supported: Iterable[str]) -> None:
        """A value is not one of the known words."""
        words = ", ".join(quoted(word) for word in supported)
        self._add("FieldValueNotSupported", path, value, f"supported values: {words}")

    def not_found(self, path: str, value: Any) -> None:
        """A value refers to nothing."""
        self._add("FieldValueNotFound", path, value, "")

    def forbidden(self, path: str, detail: str) -> None:
        """A value may not be set under these conditions."""
        self._add("FieldValueForbidden", path, None, detail)

    def too_long(self, path: str, limit: int) -> None:
        """A value has more bytes than allowed."""
        self._add("FieldValueTooLong", path, None, f"may not be more than {limit} bytes")


def label_problems(text: str) -> list[str]:
    """Why a text is not a DNS label; empty when it is one."""
    problems = []
    if len(text) > 63:
        problems.append("must be no more than 63 characters")
    if not LABEL.fullmatch(text):
        problems.append(LABEL_MESSAGE)
    return problems


def subdomain_problems(text: str) -> list[str]:
    """Why a text is not a DNS subdomain; empty when it is one."""
    problems = []
    if len(text) > 253:
        problems.append("must be no more than 253 characters")
    if not SUBDOMAIN.fullmatch(text):
        problems.append(SUBDOMAIN_MESSAGE)
    return problems


def qualified_name_problems(text: str) -> list[str]:
    """Why a text is not a qualified name (`[prefix/]name`), the form of label keys."""
    parts = text.split("/")
    problems: list[str] = []
    if len(parts) == 2:
        prefix, name = parts
        if not prefix:
            problems.append("prefix part must be non-empty")
        else:
            problems += ["prefix part " + problem for problem in subdomain_problems(prefix)]
    elif len(parts) == 1:
        name = text
    else:
        return [
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
            "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
            "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    if not name:
        problems.append("name part must be non-empty")
    elif len(name) > 63:
        problems.append("name part must be no more than 63 characters")
    if not QUALIFIED.fullmatch(name):
        problems.append(QUALIFIED_MESSAGE)
    return problems


def check_port(errors: FieldErrors, path: str, port: Any) -> None:
    """A port number lies in 1-65535."""
    if not isinstance(port, int) or not 1 <= port <= 65535:
        errors.invalid(path, port, "must be between 1 and 65535, inclusive")


def port_name_problems(name: str) -> list[str]:
    """Why a text is not the name of a container's port (IANA service name)."""
    problems = []
    if len(name) > 15:
        problems.append("must be no more than 15 characters")
    if not PORT_NAME.fullmatch(name):
        problems.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not any("a" <= letter <= "z" for letter in name):
        problems.append("must contain at least one letter (a-z)")
    if "--" in name:
        problems.append("must not contain consecutive hyphens")
    if name and "-" in (name[0], name[-1]):
        problems.append("must not begin or end with a hyphen")
    return problems


def check_port_or_name(errors: FieldErrors, path: str, value: Any) -> None:
    """An IntOrString that is a port number or the name of one."""
    if isinstance(value, str):
        for problem in port_name_problems(value):
            errors.invalid(path, value, problem)
    else:
        check_port(errors, path, value)


def check_labels(errors: FieldErrors, path: str, labels: Any) -> None:
    """Keys are qualified names, values are label values."""
    if not isinstance(labels, dict):
        return
    for key, value in labels.items():
        for problem in qualified_name_problems(key):
            errors.invalid(path, key, problem)
        if len(value) > 63:
            errors.invalid(path, value, "must be no more than 63 bytes")
        if not LABEL_VALUE.fullmatch(value):
            errors.invalid(path, value, LABEL_VALUE_MESSAGE)


def parse_ip(text: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address a text denotes; None when it denotes none."""
    if not isinstance(text, str) or "%" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def check_ip(errors: FieldErrors, path: str, text: Any) -> bool:
    """A text is an IP address; says whether it is."""
    if parse_ip(text) is None:
        errors.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
        return False
    return True


def check_endpoint_ip(errors: FieldErrors, path: str, text: Any) -> None:
    """An address that traffic may be sent to: not unspecified, loopback, link-local or link-local multicast."""
    address = parse_ip(text)
    if address is None:
        errors.invalid(path, text, "must be a valid IP address")
        return
    if address.is_unspecified:
        errors.invalid(path, text, f"may not be unspecified ({text})")
    if address.is_loopback:
        errors.invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
    if address.is_link_local:
        errors.invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    if (
        address.packed[:3] == b"\xe0\x00\x00"
        if address.version == 4
        else address.packed[0] == 0xFF and address.packed[1] & 15 == 2
    ):
        errors.invalid(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")


def check_cidr(errors: FieldErrors, path: str, text: Any) -> None:
    """A text is a network in CIDR form without bits beyond its prefix length."""
    try:
        interface = ipaddress.ip_interface(str(text)) if "/" in str(text) else None
    except ValueError:
        interface = None
    if interface is None:
        errors.invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
    elif interface.ip != interface.network.network_address:
        errors.invalid(path, text, "must not have bits set beyond the prefix length")
