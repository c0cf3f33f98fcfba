"""Where the API server is and how to prove who we are, found by the loaders of `kubernetes.aio`.

In: `ClientSettings` and the environment. Out: `Credentials`, a value that lasts until one of the files behind it changes, an exec plug-in's
token runs out, or the server says 401. Places are looked at in this order:

1. `kubeconfig` of the settings (flag or file), with certificates, tokens, token files and exec plug-ins
2. the pod's own service account, at KUBERNETES_SERVICE_HOST:PORT (set these in the DaemonSet to the API server's real address: the
   cluster IP that the kubelet puts there is a Service, and kproxy is what makes Services work)
3. the files in KUBECONFIG, else ~/.kube/config
4. the service account with the addresses remembered from an earlier life (`ClientSettings.cache`)

`master` replaces the address of whatever is found. The loaders come with the whole client library (0.3 s, 20 MB), so they are imported
when first called, and a plain kubeconfig does without them (kubeconfig.py). What must not happen here: a request to the API server.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kproxy.config.config import ClientSettings
from kproxy.config.documents import read_documents
from kproxy.errors import ConfigError, SourceError
from kproxy.watch.kubeconfig import plain_config

EXPIRY_MARGIN_S = 30.0  # an exec plug-in's token is renewed this long before it runs out
PLUGIN_S = 60.0  # for an exec plug-in; those that open a browser need a person and have no place on a node
SERVICE_ACCOUNT = "the service account"  # how `Credentials.source` begins for a pod's own
_PATH_SEPARATOR = ":"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to reach and convince the API server."""

    server: str  # URL without path
    authorization: str = ""  # value of the header, "" for none
    tls: ssl.SSLContext | None = None
    server_hostname: str | None = None  # the name in the server's certificate where it differs from the URL's
    proxy: str | None = None
    source: str  # in words, for messages
    files: tuple[tuple[str, tuple[int, int, int]], ...] = ()  # what was read, and how it looked then
    expires: float | None = None  # seconds since the epoch

    def is_stale(self, now: float) -> bool:
        """Whether they should be loaded again; `now` in seconds since the epoch."""
        if self.expires is not None and now > self.expires - EXPIRY_MARGIN_S:
            return True
        return any(_look(path) != seen for path, seen in self.files)


def _look(path: str) -> tuple[int, int, int]:
    """Changes whenever the file does; follows symbolic links, which is how the kubelet swaps tokens."""
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


async def load_credentials(
    settings: ClientSettings, environ: Mapping[str, str], remembered: tuple[str, ...]
) -> Credentials:
    """The credentials of this moment. ConfigError: a file is wrong or nothing is configured. SourceError: a plug-in failed."""
    found = await _find(settings, environ, remembered)
    if settings.master:
        return replace(found, server=settings.master)
    return found


async def _find(settings: ClientSettings, environ: Mapping[str, str], remembered: tuple[str, ...]) -> Credentials:
    if settings.kubeconfig:
        return await _from_kubeconfig((settings.kubeconfig,))
    folder = Path(settings.service_account)
    in_pod = (folder / "token").is_file()
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if in_pod and host and port:
        return _from_service_account(folder, {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port})
    listed = environ.get("KUBECONFIG") or f"{environ.get('HOME') or '/root'}/.kube/config"
    paths = tuple(path for path in listed.split(_PATH_SEPARATOR) if path and Path(path).is_file())
    if paths:
        return await _from_kubeconfig(paths)
    if in_pod and (settings.master or remembered):
        account = _from_service_account(
            folder, {"KUBERNETES_SERVICE_HOST": "unknown", "KUBERNETES_SERVICE_PORT": "443"}
        )
        return replace(account, server=settings.master or remembered[0])
    if settings.master:
        tls = ssl.create_default_context() if settings.master.startswith("https:") else None
        return Credentials(server=settings.master, tls=tls, source="--master alone, without credentials")
    raise ConfigError(
        "no way to the API server is configured. Give --kubeconfig FILE, or run as a pod with a service account and the API server's"
        " address in KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT"
    )


def _from_plain(path: str) -> Credentials | None:
    """Credentials of a kubeconfig that needs no library; None for any other, and for one whose files are not in order."""
    documents = read_documents(path)
    found = plain_config(documents[0].value, Path(path).parent) if len(documents) == 1 else None
    if found is None or not found.server.startswith(("http://", "https://")):
        return None
    try:
        token = found.token or (Path(found.token_file).read_text("utf-8") if found.token_file else "")
        tls = _context(
            found.authority_file or None,
            pem=found.authority_pem or None,
            pair=(found.certificate_file, found.key_file),
            verify=found.verify,
        )
    except (OSError, ValueError):
        return None  # the library says what is wrong with it
    files = (path, found.token_file, found.authority_file, found.certificate_file, found.key_file)
    return Credentials(
        server=found.server,
        authorization=_header(f"Bearer {token}") if token.strip() else "",
        tls=tls if found.server.startswith("https:") else None,
        server_hostname=found.server_name or None,
        source=f"kubeconfig {path}",
        files=tuple((name, _look(name)) for name in files if name),
    )


async def _from_kubeconfig(paths: tuple[str, ...]) -> Credentials:
    if len(paths) == 1 and (plain := _from_plain(paths[0])) is not None:
        return plain
    token_files, plugin = [], ""
    for path in paths:
        tokens, command = _peek(path)
        token_files += tokens
        plugin = plugin or command
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.config import kube_config

    found: Any = Configuration()
    source = f"kubeconfig {', '.join(paths)}"
    try:
        async with asyncio.timeout(PLUGIN_S):
            loader = await kube_config.load_kube_config(
                config_file=_PATH_SEPARATOR.join(paths), client_configuration=found, persist_config=False
            )
        tls = _tls(found)
        temporary = set(kube_config._temp_files.values())
    except (
        kube_config.ConfigException,
        ssl.SSLError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:
        raise ConfigError(f"cannot be used: {_one_line(error)}", where=paths[0]) from None
    finally:
        # The loader writes certificates and keys that the file carries in itself to temporary files, for OpenSSL;
        # OpenSSL has read them, and a private key must not lie about until the process ends.
        kube_config._cleanup_temp_files()
    authorization = _authorization(found)
    if plugin and not authorization and not found.cert_file:
        raise SourceError(
            f"the exec plug-in {plugin!r} of {source} gave no credentials; its own words are in the log line before this one"
        )
    expiry = getattr(loader, "exec_plugin_expiry", None)
    files = [*paths, *token_files]
    files += [path for path in (found.ssl_ca_cert, found.cert_file, found.key_file) if path and path not in temporary]
    return Credentials(
        server=str(found.host).rstrip("/"),
        authorization=authorization,
        tls=tls,
        server_hostname=found.tls_server_name or None,
        proxy=found.proxy or None,
        source=source,
        files=tuple((path, _look(path)) for path in files),
        expires=expiry.timestamp() if expiry else None,
    )


def _peek(path: str) -> tuple[list[str], str]:
    """The token files a kubeconfig names, made absolute, and the exec plug-in's command; a ConfigError with its line when it is no YAML."""
    token_files, command = [], ""
    for document in read_documents(path):
        if not isinstance(document.value, Mapping):
            raise ConfigError("a kubeconfig is a mapping with clusters, users and contexts", where=document.where())
        users = document.value.get("users")
        for entry in users if isinstance(users, list) else []:
            user = entry.get("user") if isinstance(entry, Mapping) else None
            if isinstance(user, Mapping):
                if isinstance(user.get("tokenFile"), str):
                    token_files.append(str(Path(path).parent / user["tokenFile"]))
                plugin = user.get("exec")
                if isinstance(plugin, Mapping):
                    command = command or str(plugin.get("command"))
    return token_files, command


def _from_service_account(folder: Path, environ: Mapping[str, str]) -> Credentials:
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.config.incluster_config import ConfigException, InClusterConfigLoader

    found: Any = Configuration()
    token, authority = str(folder / "token"), str(folder / "ca.crt")
    try:
        InClusterConfigLoader(token, authority, try_refresh_token=False, environ=environ).load_and_set(found)
        tls = _tls(found)
    except (ConfigException, ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(f"the service account cannot be used: {_one_line(error)}", where=str(folder)) from None
    return Credentials(
        server=str(found.host),
        authorization=_authorization(found),
        tls=tls,
        source=f"{SERVICE_ACCOUNT} in {folder}",
        files=tuple((path, _look(path)) for path in (token, authority)),
    )


def _tls(found: Any) -> ssl.SSLContext | None:
    """The TLS settings the loaders found, as a context. None for http."""
    if not str(found.host).startswith("https:"):
        return None
    return _context(found.ssl_ca_cert, pair=(found.cert_file, found.key_file), verify=found.verify_ssl)


def _context(
    authority: str | None, *, pem: str | None = None, pair: tuple[str | None, str | None], verify: bool
) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority, cadata=pem)
    # Strict RFC 5280 checks (default from Python 3.13 on) refuse authorities that Go, hence every other client, accepts.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    certificate, key = pair
    if certificate:
        context.load_cert_chain(certificate, keyfile=key)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _authorization(found: Any) -> str:
    return _header(str(found.api_key.get("BearerToken") or ""))


def _header(value: str) -> str:
    """The header's value. Token files often end in a newline, which no header may hold."""
    return " ".join(value.split())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_stale(credentials: Credentials) -> bool:
    """Whether they should be loaded again now."""
    return credentials.is_stale(time.time())
