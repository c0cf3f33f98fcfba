"""ConfigMaps, Secrets and Events: kinds that only carry data."""

from __future__ import annotations

import base64

from kproxy.lab.api.fields import CONFIG_KEY, CONFIG_KEY_MESSAGE, FieldErrors
from kproxy.lab.api.objects.base import Strategy, immutable
from kproxy.lab.api.values import Object, dig, namespace_of

DATA_LIMIT = 1024 * 1024


def _check_data(obj: Object, fields: tuple[str, ...], errors: FieldErrors) -> None:
    total = 0
    for field in fields:
        for key, value in (obj.get(field) or {}).items():
            if not CONFIG_KEY.fullmatch(key) or key in (".", ".."):
                errors.invalid(f"{field}[{key}]", key, CONFIG_KEY_MESSAGE)
            total += len(str(value))
    if total > DATA_LIMIT:
        errors.too_long(fields[0], DATA_LIMIT)


def _check_immutable(new: Object, old: Object, fields: tuple[str, ...], errors: FieldErrors) -> None:
    if not old.get("immutable"):
        return
    for field in (*fields, "immutable"):
        if new.get(field) != old.get(field):
            errors.forbidden(field, "field is immutable when `immutable` is set")


class ConfigMapStrategy(Strategy):
    """The rules of ConfigMaps."""

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """Keys are file names, the whole is at most 1 MiB."""
        _check_data(new, ("data", "binaryData"), errors)
        if old is not None:
            _check_immutable(new, old, ("data", "binaryData"), errors)


class SecretStrategy(Strategy):
    """The rules of Secrets."""

    def default(self, obj: Object) -> None:
        """Opaque; `stringData` is a way to write `data`."""
        obj["type"] = obj.get("type") or "Opaque"
        for key, value in (obj.pop("stringData", None) or {}).items():
            obj.setdefault("data", {})[key] = base64.b64encode(str(value).encode()).decode()

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """Keys are file names, the whole is at most 1 MiB, the type does not change."""
        _check_data(new, ("data",), errors)
        if old is not None:
            immutable(errors, "type", new.get("type"), old.get("type"))
            _check_immutable(new, old, ("data",), errors)


class EventStrategy(Strategy):
    """The rules of Events."""

    create_on_update = True

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """An event lives in the namespace of what it is about."""
        about = dig(new, "involvedObject", "namespace", default="")
        if about and about != namespace_of(new):
            errors.invalid("involvedObject.namespace", about, "does not match event.namespace")
