"""hookdeploy: push-to-deploy for plain Python web applications."""

__version__ = "26.11.0"
DEFAULT_NAME = "hookdeploy.toml"
"""The configuration's file in the current directory."""
