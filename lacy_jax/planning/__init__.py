"""The train step compiled ahead for TPUs on a machine without any: memory, collectives, roofline, what fits."""
