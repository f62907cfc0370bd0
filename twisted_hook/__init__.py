"""hookdeploy: somebody pushed; we believed them, wrote it down, took our turn, fetched, built, checked, swapped and told."""

__version__ = "26.11.0"
