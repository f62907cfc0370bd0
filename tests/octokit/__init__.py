"""Public examples of what GitHub sends."""
