"""Partners: who is asked when the model calls."""
