"""What went wrong between kproxy and the API server, as one line for people: address, cause, remedy.

In: an exception of the HTTP library, or a response that is not 200. Out: a `SourceError`. What must not happen here: deciding what to
do about it; the reflector reads `status` and `retry_after_s`.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping

import aiohttp

from kproxy.errors import SourceError
from kproxy.watch.credentials import SERVICE_ACCOUNT, Credentials
from kproxy.watch.decode import decode_status
from kproxy.watch.fields import shown

MAX_RETRY_AFTER_S = 300.0
_REMEDIES = {
    401: "it does not accept these credentials; they come from {source}",
    403: "the user of {source} must be allowed to list and watch this; deploy/ has the ClusterRole",
    404: "this is no API server of a supported version, or the address has a path too many",
    429: "it is busy and will be asked again later",
}


def of_exception(error: BaseException, server: str, credentials: Credentials) -> SourceError:
    """The error for an exception that a request or the reading of its answer raised."""
    cause, remedy = _cause(error, credentials)
    return SourceError(f"API server {server}: {cause}; {remedy}")


def _cause(error: BaseException, credentials: Credentials) -> tuple[str, str]:
    address = f"the address comes from {credentials.source}; --master or the kubeconfig's server changes it"
    if credentials.source.startswith(SERVICE_ACCOUNT):
        address = (
            "the address comes from KUBERNETES_SERVICE_HOST, which must name the API server itself: a Service's address answers"
            " only where something serves it already"
        )
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            inner = (
                error.certificate_error
                if isinstance(error, aiohttp.ClientConnectorCertificateError)
                else error.os_error
            )
            text = getattr(inner, "verify_message", "") or str(inner)
            return (
                f"TLS failed ({_plain(text)})",
                f"is the certificate authority in {credentials.source} this server's?",
            )
        case aiohttp.ClientConnectorDNSError():
            return "its name cannot be resolved", address
        case aiohttp.ClientConnectorError():
            return (
                f"cannot be connected to ({_kernel_word(error.os_error)})",
                f"is it running? {address}",
            )
        case aiohttp.ConnectionTimeoutError():
            return "does not answer the connection attempt", f"is a firewall between? {address}"
        case aiohttp.SocketTimeoutError():
            return "said nothing for too long", "the connection is given up and made anew"
        case asyncio.TimeoutError():
            return "took too long to answer", "it is asked again"
        case aiohttp.InvalidURL():
            return "is no URL", address
        case ssl.SSLError():
            return f"TLS failed ({_plain(error)})", f"are the certificates in {credentials.source} right?"
        case aiohttp.ClientPayloadError():
            return f"broke the connection in the middle of an answer{_inner(error)}", "it is connected anew"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return f"broke the connection ({_plain(error)})", "it is connected anew"
        case _:
            return f"{type(error).__name__}: {_plain(error)}", address


def of_response(
    status: int, headers: Mapping[str, str], body: bytes, server: str, path: str, credentials: Credentials
) -> SourceError:
    """The error for a response that is not 200."""
    refusal = decode_status(body, status)
    words = f" {shown(refusal.message)}" if refusal.message else ""
    remedy = _REMEDIES.get(status, "it is asked again later" if status >= 500 else "")
    text = f"API server {server}: {path}: HTTP {status} {refusal.reason}{words}".rstrip()
    said = remedy.format(source=credentials.source)
    retry_after = _seconds(headers.get("Retry-After", ""))
    if retry_after is None:
        retry_after = refusal.retry_after_s
    wait = min(retry_after, MAX_RETRY_AFTER_S) if retry_after is not None else None
    return SourceError(f"{text}; {said}" if said else text, status=status, retry_after_s=wait)


def _seconds(text: str) -> float | None:
    """Retry-After in seconds; the form with a date is not used by API servers."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 8 else None


def _kernel_word(error: OSError) -> str:
    """ "Connection refused" and the like; the event loops each have their own words around it."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else _plain(error)


def _inner(error: BaseException) -> str:
    """The kernel's reason behind an answer that stopped, where there is one (`Connection timed out`)."""
    seen: BaseException | None = error
    for _ in range(5):
        if isinstance(seen, OSError) and seen.errno:
            return f" ({_kernel_word(seen)})"
        seen = seen.__cause__ or seen.__context__ if seen is not None else None
    return ""


def _plain(error: object) -> str:
    return " ".join(str(error).split())[:200]
