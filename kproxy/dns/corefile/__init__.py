"""A Corefile's text → `blocks.Corefile`, as CoreDNS v1.14.7 reads it. Pure: files and the environment are arguments.

text → tokens (`lexer`) → server blocks of directives (`grammar`, with imports, snippets and the environment) → values (`parse`, with one
module for each large directive). Everything in a Corefile comes from people and from ConfigMaps that many may write: whatever it holds, the
outcome is a value or a `CorefileError` that says file, line and column. Workers do not import this; the controller and the command line do.
"""
