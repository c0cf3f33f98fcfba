"""kproxy's DNS measured against CoreDNS and NSD, in one run, on the same objects and names.

    bench_coredns.py   the command: options, order of the work
    dns/cluster.py     the objects, the names that are asked for, the resolver outside
    dns/servers.py     CoreDNS, NSD and kproxy as whole processes; their processor time and memory
    dns/load.py        dnsperf, and client.c: a search-walking client and one that times every query
    dns/rows.py        one method for each group of rows
    dns/churn.py       a thousand endpoint changes a second while queries are answered
    dns/streaming.py   the API server of that row: a real one cannot take a thousand writes a second beside the rest on two cores
    dns/table.py       figures → medians, ratios, goals; text, markdown or JSON

The node, the prefilled control plane and the programs are shared with tests: support/one_node, prefilled, proxies, cluster_api.
"""
