"""A machine and a folder to work in: what is installed against what was tested, and experiments to start from."""
