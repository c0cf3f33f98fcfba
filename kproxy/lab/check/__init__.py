"""`kproxy lab check`: does what the study notes do, line by line, and says what was expected and what was seen.

`report` holds the values and their text, `rig` the hands (run a command somewhere, write to the API, wait), `exercises_*` one function
per line of the table S1-S21, `run` puts them together. An exercise never raises for a difference: it records it and goes on.
"""
