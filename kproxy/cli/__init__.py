"""The command line: one file per command, each holding a click command named `command`.

Errors meant for people are `KproxyError`s; `main` prints them on stderr and ends with their exit code: 0 ok, 1 findings or failed,
2 usage or configuration, 3 not supported on this machine.
"""
