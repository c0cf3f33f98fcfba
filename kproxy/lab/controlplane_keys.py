"""Certificates, tokens and kubeconfigs of a control plane that lives for one lab or one test run.

In: a directory, the names and addresses that the API server will be reached by, the users it must know. Out: files in that
directory. An own small authority signs one serving certificate, so that clients verify it as they would a real cluster's; users log in by
token, and what they may do is the business of RBAC. The keys are worth nothing outside: the control plane listens inside a network
namespace and the directory goes away with it. Work is done by the `openssl` program (Debian has it wherever it has ca-certificates),
with a configuration of our own, because the system's file may add extensions twice.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from subprocess import PIPE, STDOUT, CalledProcessError, run

import yaml

from kproxy.errors import KproxyError, UnsupportedError

_OPENSSL_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = {common_name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {alternative_names}
"""

_ELLIPTIC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Someone the API server knows by token. `groups` grant what RBAC binds to them (system:masters: everything)."""

    name: str
    groups: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_hex(16))


def service_account(namespace: str, name: str) -> User:
    """A user that the API server takes for this ServiceAccount: the name is what RBAC compares, the token's origin is not."""
    return User(
        name=f"system:serviceaccount:{namespace}:{name}",
        groups=("system:serviceaccounts", f"system:serviceaccounts:{namespace}"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Where the key material of one API server lies."""

    authority: Path
    certificate: Path
    certificate_key: Path
    service_account_key: Path
    tokens: Path


def make_keys(
    directory: Path, *, addresses: Iterable[str], service_cidrs: Iterable[str], users: Iterable[User]
) -> Keys:
    """Writes everything an API server needs to be trusted and to know its users. KproxyError with openssl's words on failure."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    names = [
        "DNS:localhost",
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default.svc.cluster.local",
    ]
    numbers: set[IPv4Address | IPv6Address] = {ip_address(a) for a in (*addresses, "127.0.0.1")}
    # the first address of the Service network is where pods reach the API server
    numbers.update(ip_network(cidr).network_address + 1 for cidr in service_cidrs)
    names += [f"IP:{n}" for n in sorted(numbers, key=str) if not n.is_unspecified]

    def configuration(common_name: str) -> Path:
        path = directory / f"{common_name}.cnf"
        path.write_text(_OPENSSL_CONFIG.format(common_name=common_name, alternative_names=", ".join(names)))
        return path

    keys = Keys(
        authority=directory / "ca.crt",
        certificate=directory / "apiserver.crt",
        certificate_key=directory / "apiserver.key",
        service_account_key=directory / "sa.key",
        tokens=directory / "tokens.csv",
    )
    authority_key, request = directory / "ca.key", directory / "apiserver.csr"
    server = configuration("kube-apiserver")
    _openssl(
        "req", "-x509", *_ELLIPTIC_KEY, "-keyout", authority_key, "-out", keys.authority, "-days", "365",
        "-config", configuration("kproxy-lab-ca"), "-extensions", "authority",
    )  # fmt: skip
    _openssl("req", "-new", *_ELLIPTIC_KEY, "-keyout", keys.certificate_key, "-out", request, "-config", server)
    _openssl(
        "x509", "-req", "-in", request, "-CA", keys.authority, "-CAkey", authority_key, "-CAcreateserial", "-out", keys.certificate,
        "-days", "365", "-extfile", server, "-extensions", "server",
    )  # fmt: skip
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", keys.service_account_key)
    keys.tokens.write_text("".join(_token_line(user, number) for number, user in enumerate(users)))
    keys.tokens.chmod(0o600)
    return keys


def write_kubeconfig(path: Path, *, server: str, authority: Path, user: User) -> Path:
    """A kubeconfig for one user, with the authority inside so that the file can be copied into a pod or onto another node."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "lab",
                "cluster": {
                    "server": server,
                    "certificate-authority-data": base64.b64encode(authority.read_bytes()).decode("ascii"),
                },
            }
        ],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user.name}}],
        "current-context": "lab",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _token_line(user: User, number: int) -> str:
    groups = ",".join(user.groups)
    return f'{user.token},{user.name},{number},"{groups}"\n'


def _openssl(*arguments: str | Path) -> None:
    try:
        run(["openssl", *map(str, arguments)], stdout=PIPE, stderr=STDOUT, check=True, timeout=30)
    except FileNotFoundError:
        raise UnsupportedError(
            "the program `openssl` is missing; it makes the control plane's certificates (Debian: apt-get install openssl)"
        ) from None
    except CalledProcessError as error:
        words = error.output.decode(errors="replace").strip()
        raise KproxyError(f"openssl {arguments[0]} failed: {words}") from error
