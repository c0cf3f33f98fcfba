"""kproxy: a kube-proxy and cluster DNS for Linux nodes that explains itself. The map of the program; read this first.

One pipeline, and state flows one way through it:

    API streams ─▶ watch.reflector ─▶ events ─▶ model.snapshot.fold ─▶ Snapshot
    node addresses ─▶ watch.addresses ──┘                                 │
         ┌────────────────────────────────────────────────────────────────┤
         ▼                                                                ▼
    model.resolve ─▶ DesiredState                                  dns.compile ─▶ Zone
         ▼                                                                ▼
    backends.iptables: compile ─▶ Ruleset ─▶ plan ─▶ apply ─▶ kernel   dns.channel ─▶ dns.worker ─▶ answers

    processes     supervisor (`kproxy run`) ─┬─ controller     app.py: watch, model, rules, status pages
                                             ├─ dns workers    dns/worker.py: one per core, fed over a Unix socket
                                             └─ relay workers  relay/worker.py: mode userspace, one per core, fed the same way

    model/        what Services mean: names objects events snapshot topology resolve desired diff        pure
    watch/        client reflector decode (API), addresses (netlink), manifests (files)
    sync/         pacer (pure: when may the next sync run), loop (fold → resolve → compile → plan → apply), writer (whose turn it is),
                  healing (finds drift and has it mended), succession (what another mode left goes once this one's rules are written)
    backends/     base.py: what a data plane offers; iptables/ and userspace/ (nft, TPROXY): names ruleset compile plan (pure) apply
    relay/        mode userspace: targets table chooser ejection affinity (pure); poller tcp udp worker; publisher, the controller's end
    dns/          blocks corefile chain and its directives, search, names zone compile answer wire cache (pure); server forward walking
                  worker publisher presence handover memory; its own text says the way of a query
    ebpf/         programs that the kernel runs: assembly packets (pure) calls handing; for dns/kernel_*, relay/kernel_*
    conntrack/    after a sync: open flows the wanted state disagrees with; stale netlink (pure) reconciler ended
    loopback/     node ports on 127.0.0.0/8 and ::1 by a worker of its own, where configured
    healthcheck/  healthCheckNodePort: table (pure) server
    node/         what is set on the machine besides rules: conntrack sysctls, oom_score_adj; rtnetlink: addresses and links
    explain/      why an endpoint is used, what each rule is for, where a packet goes (pure)
    config/       KproxyConfiguration, KubeProxyConfiguration v1alpha1, flags
    telemetry/    logs, Events, pages, metrics, the state socket that cli/{status,explain,diff} read
    lab/          three nodes in network namespaces, an embedded API server, pods that answer
    cli/          one file per command; exit codes 0 ok, 1 findings, 2 usage, 3 not supported here
    app.py        the only wiring: builds everything, owns the task group; app_rules*.py the half of the data plane
                  that `mode` chooses, app_left.py what other modes left; app_dns.py the DNS half, app_corefile.py its Corefile
    supervisor.py the parent process; process.py what every process does first; early.py, lean.py, recorded.py
                  a start that does not wait

Below the purity line (model, names/ruleset/compile/plan of a backend, zone/compile/answer/wire/cache of dns, sync.pacer, explain) there
is no I/O, no clock, no logging and no await; `tests/unit/test_architecture.py` reads the syntax trees and fails on a forbidden import.

To follow one change: `watch/reflector.py` emits `Applied(Service)`; `sync/loop.py` folds it, `model/resolve.py` decides who gets which
traffic, `backends/iptables/compile.py` writes that as chains, `plan.py` finds what differs from the kernel, `apply.py` runs the
difference; meanwhile `dns/compile.py` made a new zone and `dns/publisher.py` sent the workers what is new.
"""

__version__ = "0.1.0"
