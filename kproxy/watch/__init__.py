"""Where objects come from: the API server's lists and watches, manifests in files, and the addresses of this machine's interfaces.

fields → wire → decode turn JSON into model objects and Problems. manifests reads files, client speaks HTTP, reflector keeps one kind in
step with the API, addresses follows netlink. What leaves this package are the four events of `model.events` and nothing else.
"""
