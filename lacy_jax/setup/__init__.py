"""Getting started: a check of the machine and its installed versions, and experiments to start from."""
