"""hookdeploy: push-to-deploy for plain Python web applications."""

__version__ = "26.11.0"
