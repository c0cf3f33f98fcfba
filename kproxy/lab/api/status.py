"""The API's refusals: one exception, `ApiError`, that renders itself as the `Status` object clients know.

What comes in: the facts of a refusal. What comes out: code, reason, message and details exactly as kube-apiserver words them
(k8s.io/apimachinery pkg/api/errors at v0.36.3), because kubectl prints the message and decides by the reason. What must not happen
here: knowing any kind's fields; field errors are made in `fields`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kproxy.lab.api.values import Object

if TYPE_CHECKING:
    from kproxy.lab.api.fields import FieldErrors
    from kproxy.lab.api.kinds import Resource


class ApiError(Exception):
    """A request was refused. `retry_after_s` becomes the Retry-After header."""

    def __init__(
        self, code: int, reason: str, message: str, *, details: Object | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s
        self.warnings: list[str] = []  # what the client is told besides

    def status(self) -> Object:
        """The Status object of this refusal."""
        body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        body["message"] = self.message
        if self.reason:
            body["reason"] = self.reason
        details = dict(self.details) if self.details else {}
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        if details:
            body["details"] = details
        body["code"] = self.code
        return body


def _details(resource: Resource, name: str) -> Object:
    details: Object = {}
    if name:
        details["name"] = name
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    return details


def not_found(resource: Resource, name: str) -> ApiError:
    """There is no such object."""
    message = f'{resource.group_resource} "{name}" not found'
    return ApiError(404, "NotFound", message, details=_details(resource, name))


def no_such_path() -> ApiError:
    """There is no such resource or path; the words kubectl turns into its own."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", details={})


def already_exists(resource: Resource, name: str) -> ApiError:
    """An object of that name is there already."""
    message = f'{resource.group_resource} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details=_details(resource, name))


def conflict(resource: Resource, name: str, why: str) -> ApiError:
    """The object is not in the state that the request supposes."""
    message = f'Operation cannot be fulfilled on {resource.group_resource} "{name}": {why}'
    return ApiError(409, "Conflict", message, details=_details(resource, name))


def modified(resource: Resource, name: str) -> ApiError:
    """The resourceVersion of the request is an old one."""
    return conflict(
        resource,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )


def invalid(group: str, kind: str, name: str, errors: FieldErrors) -> ApiError:
    """One or more fields are wrong; every error is a cause of its own."""
    texts = errors.texts()
    listed = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    details: Object = {"name": name, "kind": kind, "causes": errors.causes()}
    if group:
        details["group"] = group
    return ApiError(
        422, "Invalid", f'{kind + "." + group if group else kind} "{name}" is invalid: {listed}', details=details
    )


def bad_request(message: str) -> ApiError:
    """The request itself cannot be understood."""
    return ApiError(400, "BadRequest", message)


def forbidden(resource: Resource, name: str, why: str) -> ApiError:
    """The request is understood and refused."""
    message = f'{resource.group_resource} "{name}" is forbidden: {why}'
    return ApiError(403, "Forbidden", message, details=_details(resource, name))


def method_not_allowed() -> ApiError:
    """The resource does not know this verb."""
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def unsupported_media_type(accepted: tuple[str, ...]) -> ApiError:
    """The body is in a form this server does not read."""
    message = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(accepted)
    return ApiError(415, "UnsupportedMediaType", message)


def not_acceptable(accepted: tuple[str, ...]) -> ApiError:
    """No form the client accepts can be produced."""
    message = "only the following media types are accepted: " + ", ".join(accepted)
    return ApiError(406, "NotAcceptable", message)


def expired(message: str) -> ApiError:
    """The resourceVersion or continue token is older than what the server remembers."""
    return ApiError(410, "Expired", message)


def too_large_resource_version(asked: int, current: int) -> ApiError:
    """The client wants a state that has not been reached."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return ApiError(504, "Timeout", message, details={"causes": [cause]}, retry_after_s=1)


def internal_error(message: str) -> ApiError:
    """The server could not do what it should be able to do."""
    return ApiError(
        500, "InternalError", f"Internal error occurred: {message}", details={"causes": [{"message": message}]}
    )


def success(resource: Resource, name: str, uid: str) -> Object:
    """The Status that answers a delete which left nothing behind."""
    details: Object = {"name": name}
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    if uid:
        details["uid"] = uid
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def invalid_option(field: str, value: str, supported: tuple[str, ...]) -> ApiError:
    """A query parameter has a value that is none of the known words."""
    words = ", ".join(f'"{word}"' for word in supported)
    body = f'Unsupported value: "{value}": supported values: {words}'
    details = {"causes": [{"reason": "FieldValueNotSupported", "message": body, "field": field}]}
    return ApiError(422, "Invalid", f' "" is invalid: {field}: {body}', details=details)


def apply_conflict(causes: list[Object], message: str) -> ApiError:
    """Server-side apply would change fields of others."""
    return ApiError(409, "Conflict", message, details={"causes": causes})


def patch_failed() -> ApiError:
    """A patch does not fit the object. The real server does not say why either; kubectl prints the causes instead where there are any."""
    return ApiError(422, "Invalid", "the server rejected our request due to an error in our request")
