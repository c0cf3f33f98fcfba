"""kproxy: a kube-proxy and cluster DNS for Linux nodes that explains itself."""

__version__ = "0.1.0"
