"""Three nodes in network namespaces, an API server, and pods that answer: a cluster network without a container runtime.

Nothing of kproxy imports this package but the command line (`cli/lab.py`) and tests. To read it, in this order:

    addressing      who has which address (pure)
    lifecycle       up and down as the caller sees them; statefile: what they leave on disk
    isolation       how everything comes to live below one process, in namespaces of its own; namespaces: the Linux calls for it
    first           that process, pid 1 of the lab: starts the programs, passes events on; programs: started, reaped, started again
    network         links, addresses, routes
    agent           the kubelet's place, for all nodes: pods come and go (pods), are probed (probes), have files and variables
                    (podfiles, pure), serve what their image means (images, pure; servers); it also makes what every lab has (system)
    outside         the world outside the cluster: a resolver and web pages
    places, enter   pods, nodes and machines as somewhere a command can run; entering: getting there from outside
    api/            the embedded API server and its controllers
    controlplane    the real ones, by realapi, with relay for the door
    client, follow  the lab's own small API client; apply: manifests into the API; overview: what `lab status` shows
    checking        `lab check` from outside; check/: the exercises; probe: small network clients for them
"""
