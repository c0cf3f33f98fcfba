"""Open UDP flows that disagree with the wanted state, and their end.

The kernel asks the nat rules once for each flow; a UDP client that keeps its socket open is therefore sent to an endpoint long after it is
gone. `stale` says which flows are wrong, `netlink` knows how the kernel spells flows, `apply` asks it and deletes.
"""
