"""The kinds' own rules: defaults, validation, what is taken and given back. One module per family of kinds, `catalogue` lists them."""
