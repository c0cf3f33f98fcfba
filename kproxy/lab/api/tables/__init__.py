"""Tables: the columns that `kubectl get` prints, one module per family of kinds."""
