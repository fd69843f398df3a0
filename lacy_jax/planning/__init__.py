"""The train step compiled ahead for TPUs that are not there: memory, collectives, roofline, what fits."""
