"""The cluster's DNS: a second compiler on the snapshot, and the processes that answer from what it makes.

    Snapshot ─▶ compile_zones ─▶ Zones ─▶ publisher ══Unix socket (channel)══▶ feed ─▶ server
                                                                                          │ sockets, settings, who is served
    datagrams   hot loop: bytes of a query ─▶ cache ─▶ bytes of the reply                 │
    streams     TCP connections                                                           ▼
        └─ what is not remembered ─▶ replying ─▶ responding ─▶ chain.respond ─▶ Outcome ─▶ reply
                                                                   ├▶ Forward ─▶ forward ─▶ upstream.finish ─▶ reply
                                                                   └▶ Walk ─▶ walking ─▶ search.finish ─▶ reply

`chain` runs the directives of a Corefile (`corefile` reads one, `blocks` is what it says) in CoreDNS's order; `answer` is its `kubernetes`.
Beside the way of a query: `clients` (who asks), `fairness` and `sieve` (who sends too much), `cookies`, `tally` (what is counted),
`batches` (many packets to a system call), `remembered` (the caches of a port), `records` and `observing` (who looks on), `presence` and
`handover` (which addresses this node holds).

Pure or not is said in tests/unit/test_architecture.py. A worker imports only this package, `kproxy.model` and the standard library with
msgspec: its memory is paid once per core.
"""
