"""The fields of KubeProxyConfiguration v1alpha1 that kproxy reads past, and why each has no effect here.

A key may be a whole group. Fields that neither stand here nor in `load.SETTINGS` are unknown to upstream too.
"""

from __future__ import annotations

from collections.abc import Mapping

_CONNTRACK = "kproxy does not set conntrack sysctls yet; the kernel's values stay"
_IPVS = "kproxy has no ipvs mode"
_CLIENT = "kproxy talks JSON to the API over few long watches, which needs neither a rate limit nor another encoding"

NO_EFFECT: Mapping[str, str] = {
    "featureGates": "no feature of this version is behind a gate",
    "clientConnection.acceptContentTypes": _CLIENT,
    "clientConnection.contentType": _CLIENT,
    "clientConnection.qps": _CLIENT,
    "clientConnection.burst": _CLIENT,
    "logging.flushFrequency": "every line is written at once",
    "logging.vmodule": "verbosity is one number for the whole program",
    "logging.options": "the log formats have no options",
    "bindAddressHardFail": "an address that cannot be bound is always an error that names it",
    "enableProfiling": "there is no profiler in the daemon",
    "showHiddenMetricsForVersion": "no metrics are hidden",
    "nftables": "mode nftables is not there yet",
    "ipvs": _IPVS,
    "winkernel": "kproxy runs on Linux",
    "windowsRunAsService": "kproxy runs on Linux",
    "oomScoreAdj": "set it in the unit or the pod; kproxy does not change its own",
    "conntrack": _CONNTRACK,
    "configSyncPeriod": "watches carry bookmarks and are checked for life, so nothing is resynced by the clock",
    "portRange": "upstream ignores it too, since its userspace mode went",
}
