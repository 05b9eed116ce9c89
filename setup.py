"""Map the three rooms to `penstock.<room>`; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

ROOMS = ("serving", "scheduler", "kernels")
packages = find_namespace_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])

setup(
    packages=[f"penstock.{package}" for package in packages],
    package_dir={f"penstock.{room}": room for room in ROOMS},
    package_data={"": ["py.typed"], "penstock.kernels": ["*.c", "*.h"]},
)
