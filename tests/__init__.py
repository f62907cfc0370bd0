"""The tests, in rings: synchronous ones run under trial and pytest, those with a reactor under pytest."""
