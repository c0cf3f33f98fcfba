"""Where objects come from: the API server's lists and watches, manifests in files, and the addresses of this machine's interfaces.

fields (text) → wire (JSON) → convert, services (meaning) → decode (objects, list pages, watch lines) make model objects and Problems.
manifests reads files (mirror turns Endpoints into slices); credentials, client and client_errors speak with the API server; reflector
keeps one kind in step with it; addresses follows netlink. What leaves this package are the four events of `model.events`.
"""
