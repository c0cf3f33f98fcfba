"""Events about the DNS half, as people read them in `kubectl describe node`."""

from __future__ import annotations

from kproxy.telemetry.metrics_reload import reloads
from kproxy.telemetry.notices import corefile_refused


def test_a_refused_corefile_is_an_event_of_the_node_with_the_place() -> None:
    note = corefile_refused("node-1", "/etc/coredns/Corefile:2:5: 'looop' is no directive")
    assert (note.about.kind, note.about.name, note.reason) == ("Node", "node-1", "CorefileRefused")
    assert note.warning
    assert (
        note.text == "the Corefile is wrong, the one in force stays: /etc/coredns/Corefile:2:5: 'looop' is no directive"
    )


def test_metrics_have_coredns_names_and_labels() -> None:
    found = {sample.name: sample for family in reloads(3, "abc") for sample in family.samples}
    assert found["coredns_reload_failed_total"].value == 3
    assert found["coredns_reload_version_info"].labels == {"hash": "sha512", "value": "abc"}
    assert [family.name for family in reloads(0, "")] == ["coredns_reload_failed"]
