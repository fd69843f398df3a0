"""Studies that compare many runs, for use by experiments."""
