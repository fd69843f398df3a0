"""The packages: setup.cfg has all the rest, but cannot say that experiments/ travels inside lacy_jax."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lacy_jax*"]), "lacy_jax.experiments"],
    package_dir={"lacy_jax.experiments": "experiments"},
)
