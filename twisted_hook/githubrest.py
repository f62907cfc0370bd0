"""What is known of GitHub's REST API before it is asked: where it is, in which version, and how much it may say.

Pure. Who asks it needs the libraries that it is asked with; who only wants to know where it is does not.
"""

from __future__ import annotations

TIMEOUT = 10.0
"""Seconds for one request, from the name's look-up to the answer's last byte."""
LARGEST_ANSWER = 1024 * 1024
"""Bytes; a page of a hundred deliveries is some 50 kB, and all of GitHub's networks are some hundred kB."""
VERSION = "2022-11-28"
"""The version of the API: https://docs.github.com/en/rest/about-the-rest-api/api-versions"""


def api_of(host: str) -> str:
    """Where the API of the GitHub at this host is.

    https://docs.github.com/en/enterprise-server/rest/using-the-rest-api/getting-started-with-the-rest-api
    """
    if host in {"", "github.com", "www.github.com", "ssh.github.com"}:
        return "https://api.github.com"
    if host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"https://{host}/api/v3"
