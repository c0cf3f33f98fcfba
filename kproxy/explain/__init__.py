"""Answers to "where does this packet go, and why?", computed from rulesets as values: no kernel, no root, milliseconds.

trace (what is asked and answered) · match_iptables (does one rule match, with the reason) · trace_iptables (the walk through tables
and chains). Pure, like the compilers it explains.
"""
