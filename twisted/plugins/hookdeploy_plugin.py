"""Makes ``twistd hookdeploy`` known. There is no ``__init__.py`` beside this file: the package is Twisted's."""

from twisted.application.service import ServiceMaker

hookdeploy = ServiceMaker(
    "hookdeploy",
    "twisted_hook.loading",
    "Deploys what is pushed: receives webhooks, runs git, builds, and swaps the app server.",
    "hookdeploy",
)
