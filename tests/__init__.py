"""The tests of hookdeploy, in rings: pure and synchronous ones run under trial and pytest, those with a reactor under pytest."""
