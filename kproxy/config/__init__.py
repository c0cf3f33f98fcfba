"""What people write for kproxy: configuration files and flags, read into one frozen `Config`; every default with its unit and reason.

documents reads YAML and JSON and remembers where everything stood, so that an error names file, line and field. Importable by all.
"""
