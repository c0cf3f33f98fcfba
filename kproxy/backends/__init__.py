"""Data planes: each translates `model.desired` into what one kernel facility understands, with the same five names.

`names` (names and their length proofs), `ruleset` (frozen values, rendered to and parsed from the tool's text), `compile`
(DesiredState → Ruleset), `plan` ((applied, wanted) → ordered bounded batches), `apply` (runs batches, observes, cleans up). The first four
are pure. Backends never import one another.
"""
