"""Comparisons of many runs that an experiment asks for."""
