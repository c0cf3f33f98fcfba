"""Where in the run directory the relay's socket and its memory are: controller and workers name them by the same function. Pure."""

from __future__ import annotations


def relay_path(run_dir: str, family: str) -> str:
    """The socket between a controller and the relay workers of the same supervisor; family: `process.family_name` of that one."""
    return f"{run_dir}/relay-{family}.sock"


def kernel_path(channel: str) -> str:
    """The socket where workers get what they need to hand flows over to the kernel; channel: `relay_path`."""
    return f"{channel}.kernel"


def remembered_path(run_dir: str) -> str:
    """The file with session affinity: of the node, whoever serves it."""
    return f"{run_dir}/relay-affinity"
