"""Three nodes in network namespaces, an API server, and pods that answer: a cluster network without a container runtime.

Read in this order: `addressing` (who has which address), `isolation` (how everything comes to live below one process), `first` (that
process: starts, watches and restarts the rest), `network` (links and routes), `agent` (the kubelet's place: pods come and go),
`enter` (how a command gets into a pod, a node, or the outside), `check` (what `kproxy lab check` does for each exercise).
"""
