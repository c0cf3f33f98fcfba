"""Node ports on 127.0.0.0/8 and ::1 by a listener of ours, without `route_localnet` (`iptables.localhost_listener`).

The kernel's way needs `net.ipv4.conf.all.route_localnet`, which lets neighbours reach whatever listens on 127.0.0.1 unless a rule guards
it (CVE-2020-8558), and has no counterpart for IPv6. Here a process of its own (`worker`) listens and relays; rules leave loopback alone.
`table` says what to listen on, `channel` brings it from the controller to the worker, `tcp` and `udp` relay, `choice` picks the endpoint.
"""
