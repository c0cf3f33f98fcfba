"""The rules of mode `userspace`: constant nft rules, one element per destination, that bring packets for Services to the relay workers.

names → ruleset → compile → plan are pure; apply runs `nft`, routing sets the policy route, guard looks whether all is still there. What
happens to a connection afterwards is kproxy/relay's.
"""
