"""Answers load balancers that ask a node about one Service: has it local endpoints? (healthCheckNodePort, externalTrafficPolicy Local).

DesiredState ─▶ table.wanted ─▶ which listeners, with what count ─▶ server: opens, closes, answers
"""
