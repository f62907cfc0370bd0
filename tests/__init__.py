"""The tests, in rings: synchronous ones run under trial and pytest, those with a reactor under pytest."""

from hypothesis import HealthCheck, settings

# A machine that is busy, and chance that draws a few unfit examples, are no faults of what is tested.
settings.register_profile(
    "hookdeploy",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("hookdeploy")
