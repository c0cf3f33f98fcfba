"""The cluster's DNS: a second compiler on the snapshot, and the processes that answer from what it makes.

Pure: blocks settings configured names zone compile lookup wire answer cache upstream text. Effects: resolvconf forward channel server worker node.

    Snapshot ─▶ compile_zone ─▶ Zone ─▶ ZonePublisher ══Unix socket══▶ worker: Zone ─▶ answer() ─▶ cache ─▶ reply
                                                                                         └▶ Forward ─▶ forward.py ─▶ reply

A worker imports only this package, `kproxy.model` and the standard library with msgspec: its memory is paid once per core.
"""
