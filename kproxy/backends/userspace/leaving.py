"""Effects: how this mode leaves a node on which another mode took over, in two steps, so that no connection is cut.

    retire   what catches new connections goes, in one transaction; what keeps relayed ones with their workers stays: the question for a
             socket, the conntrack mark of this node's own connections, the policy route
    then     UserspaceBackend.cleanup, once no worker has connections any more

Also here, because it takes the same tool: the tables of kube-proxy's nftables mode, which would go on translating.
"""

from __future__ import annotations

import asyncio

from kproxy.backends.userspace import kernel, names
from kproxy.model.names import Family

_KUBE_PROXY = "kube-proxy"  # its table, in families ip and ip6 (pkg/proxy/nftables)


def left_behind() -> dict[Family, int]:
    """Families in which our table is there, with the number of its elements. Blocks. Raises OSError, ValueError."""
    found = {}
    for family in Family:
        if kernel.is_there(family, names.TABLE):
            found[family] = sum(map(len, kernel.look(family).elements.values()))
    return found


async def retire() -> None:
    """Nothing new reaches the relay from now on. Raises ApplyError, OSError, ValueError."""
    text = "".join(
        f"flush {'map' if kind.verdicts else 'set'} {names.NFT_FAMILY[family]} {names.TABLE} {name}\n"
        for family in Family
        if kernel.is_there(family, names.TABLE)
        for name, kind in kernel.shape(family)[1].items()
    )
    if text:
        await kernel.run_nft("nft", text)


def kube_proxy_tables() -> list[str]:
    """Family and name of each table of kube-proxy's nftables mode. Blocks. Raises OSError, ValueError."""
    return [
        f"{word} {_KUBE_PROXY}" for family, word in names.NFT_FAMILY.items() if kernel.is_there(family, _KUBE_PROXY)
    ]


async def remove_kube_proxy_tables() -> list[str]:
    """Removes them; those that were there. Raises ApplyError, OSError, ValueError."""
    found = await asyncio.to_thread(kube_proxy_tables)
    for table in found:
        await kernel.run_nft("nft", f"delete table {table}\n")
    return found
