"""Mode `userspace`: connections to Services end in worker processes of this node, which open their own to an endpoint.

Rules (backends/userspace) bring packets here with their destination as it was; `targets` says what stands behind a destination; `chooser`
picks an endpoint; `tcp` and `udp` carry bytes; `worker` is the process and `publisher` the controller's end of the channel to it.
"""
