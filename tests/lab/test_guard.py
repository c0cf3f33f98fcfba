"""A tenant claims the API server's and a resolver's address (fault 44), in a lab whose operator gave the whole wire away."""

from __future__ import annotations

from kproxy.lab.addressing import API_PORT, DNS_SERVICE_IP, PARENT_IP
from tests.support.lab import LabUnderTest

# Without endpoints: whoever believed this Service would refuse every connection to these addresses.
CLAIM = f"""
apiVersion: v1
kind: Service
metadata: {{name: claim}}
spec:
  externalIPs: [{PARENT_IP}, {DNS_SERVICE_IP}, 203.0.113.77]
  ports:
    - {{name: harmless, port: 8089}}
    - {{name: api, port: {API_PORT}}}
    - {{name: dns, port: 53, protocol: UDP}}
"""


def test_fault_44_nobody_stands_between_a_node_and_its_api_server(lab: LabUnderTest) -> None:
    lab.ok("apply", "-f", "-", stdin=CLAIM)
    lab.until(f"-d {PARENT_IP}/32", "node-1", "iptables-save", "-t", "filter")
    refused = [line for line in lab.at("node-1", "iptables-save").splitlines() if "default/claim:" in line]
    claimed = {line for line in refused if "external IP" in line or "externally" in line or f"-d {PARENT_IP}" in line}
    assert all(f"-d {PARENT_IP}/32" in line and "default/claim:harmless" in line for line in claimed), claimed
    assert claimed
    told = lab.at("node-1", "curl", "-sS", "http://127.0.0.1:10249/statusz")
    assert f"spec.externalIPs: {PARENT_IP} port {API_PORT}/TCP refused: the API server's" in told
    assert f"spec.externalIPs: {PARENT_IP} port 53/UDP refused: a DNS resolver's" in told
    assert f"spec.externalIPs: {DNS_SERVICE_IP} refused: not in externalIPs.allowedNetworks" in told
    assert "spec.externalIPs: 203.0.113.77 refused: not in externalIPs.allowedNetworks" in told
    assert lab.run("exec", "node-1", "--", "curl", "-sS", f"http://{PARENT_IP}:{API_PORT}/version").returncode == 0
    assert lab.run("exec", "node-1", "--", "curl", "-sS", f"http://{PARENT_IP}:8089/").returncode == 7
