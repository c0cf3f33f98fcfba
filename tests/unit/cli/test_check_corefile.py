"""`kproxy dns check`: what was understood, warnings beside it, exit code 2 with the place of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.cli.check_corefile import command
from kproxy.errors import ConfigError, ExitCode

INSTALLERS = Path(__file__).resolve().parents[2] / "support/installers/dns"
TEXT = """\
.:53 {
    metadata
    kubernetes cluster.local in-addr.arpa {
        pods insecure
        fallthrough in-addr.arpa
    }
    hosts {
        192.0.2.1 one.example
        fallthrough
    }
    forward . 192.0.2.53 tls://192.0.2.54%dns.example
    rewrite name a.example b.example
    reload 10s
}
acme.test:5353 {
    bind 127.0.0.1
    whoami
}
"""


def run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(command, arguments)
    if done.exception is not None:
        raise done.exception
    return done.stdout, done.stderr


def test_block_by_block(tmp_path: Path) -> None:
    file = tmp_path / "Corefile"
    file.write_text(TEXT)
    out, remarks = run(str(file))
    assert out.splitlines() == [
        ". port 53",
        "    rewrite what=name pattern=a.example. to=b.example.",
        "    hosts zones=. lines=(192.0.2.1 one.example) fallthrough=.",
        "    kubernetes zones=cluster.local,in-addr.arpa pods=insecure fallthrough=in-addr.arpa",
        "    forward to=192.0.2.53,tls://192.0.2.54%dns.example",
        "acme.test port 5353 at 127.0.0.1",
        "    whoami",
        "the whole server: reload_s 10, reload_jitter_s 5",
    ]
    assert remarks == f"kproxy: {file}:2:5: metadata has no effect: nothing here reads metadata\n"


def test_as_json(tmp_path: Path) -> None:
    file = tmp_path / "Corefile"
    file.write_text(TEXT)
    found = json.loads(run(str(file), "-o", "json")[0])
    assert [block["zones"] for block in found["blocks"]] == [["."], ["acme.test"]]
    assert found["blocks"][0]["forwards"][0]["to"] == ["192.0.2.53", "tls://192.0.2.54%dns.example"]
    assert found["pages"]["reload_s"] == 10


@pytest.mark.parametrize("file", sorted(INSTALLERS.glob("*.yaml")), ids=lambda file: file.stem)
def test_manifests_of_installers(file: Path) -> None:
    out, _ = run(str(file))
    assert "    kubernetes zones=cluster.local," in out


def test_what_is_wrong_has_a_place_and_the_code_of_usage(tmp_path: Path) -> None:
    file = tmp_path / "Corefile"
    file.write_text(".:53 {\n    nonsense\n}\n")
    with pytest.raises(ConfigError, match=f"^{file}:2:5: 'nonsense' is no directive") as error:
        run(str(file))
    assert error.value.exit_code == ExitCode.USAGE == 2
    manifest = tmp_path / "maps.json"
    for text in ("[]", '{"kind": "ConfigMap", "data": {"corefile": ""}}'):
        manifest.write_text(text)
        with pytest.raises(ConfigError, match="holds no ConfigMap with a key Corefile"):
            run(str(manifest))


def test_the_configurations_corefile_and_addresses(tmp_path: Path) -> None:
    file, config = tmp_path / "Corefile", tmp_path / "config.yaml"
    file.write_text("cluster.local {\n    forward . 10.43.0.10\n}\n")
    head = "apiVersion: kproxy.dev/v1alpha1\nkind: KproxyConfiguration\n"
    config.write_text(f"{head}dns: {{clusterDNS: [10.43.0.10], corefile: {file}}}\n")
    out, remarks = run("--config", str(config))
    assert "    kubernetes zones=cluster.local pods=insecure ttl=30" in out
    assert "the cluster's DNS is this server" in remarks
    config.write_text(f"{head}dns: {{corefile: 'configmap:kube-system/coredns'}}\n")
    with pytest.raises(ConfigError, match="is in the API; give the manifest"):
        run("--config", str(config))
    with pytest.raises(ConfigError, match="say which"):
        run()
