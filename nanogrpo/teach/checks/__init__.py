"""The checks, by what they look at. A module in this folder is found by itself; see :mod:`.registry`."""
