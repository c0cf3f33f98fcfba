"""The controllers of the lab's cluster: each looks at objects, and writes others, until the two agree.

They stand in for kube-controller-manager, kube-scheduler and a load balancer. All run in the server's own task, synchronously, one key at a
time (`loop`), so a step is never interrupted and tests need not wait.
"""
