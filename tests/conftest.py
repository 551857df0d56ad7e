"""Settings that every test shares."""

from hypothesis import settings

# Derandomized: the same examples on every run, so a failure is the code's and not the draw's.
settings.register_profile("nanogrpo", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("nanogrpo")
