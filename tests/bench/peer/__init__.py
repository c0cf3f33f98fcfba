"""kube-proxy and kproxy measured against each other, in one run, on the same objects, in the same namespaces.

    bench_kube_proxy.py   the command: options, order of the work
    peer/probing.py       from a pod: when does a connection first work, how long does one take
    peer/rows.py          one function for each group of rows of the table: starts, changes, connections, memory, kills
    peer/churn.py         a hundred endpoint changes a second for minutes
    peer/table.py         figures → medians, ratios, goals; text or JSON

The node, what answers at its endpoints, the prefilled control plane and the programs are shared with tests: support/one_node, echoing,
prefilled, proxies, cluster_api, traffic.
"""
