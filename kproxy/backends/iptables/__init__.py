"""The iptables data plane: kube-proxy's own chains and rules, for iptables-legacy and iptables-nft, IPv4 and IPv6.

names → ruleset (with rules, the grammar of one rule) → compile → plan are pure; apply runs the kernel's tools. libiptc asks this
kernel what its xtables can do.
"""
