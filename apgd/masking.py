"""Secrets kept out of what is printed, logged and written down."""

import os
import re

MASK = "***"
_SHORTEST = 8
"""A shorter value of the environment may be a part of any word."""

# Up to the last @, because a password may hold one, or a slash; a file's path is no address.
_USER = re.compile(r"(?<=://)(?<!sqlite://)[^\s'\"]*@")
_QUERY = re.compile(
    r"(?i)([?&;][^=&;\s'\"]*(?:pass|pwd|secret|token|key|credential|signature)[^=&;\s'\"]*=)"
    r"[^&;\s'\"]+"
)
_SECRET_NAME = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|credentials?|api_?key|access_key|secret_key|"
    r"private_key|connection_string)(_|$)"
)
_NO_SECRET = re.compile(r"(?i)_(path|file|dir|id|mode|url|uri)$")


def without_credentials(text: str) -> str:
    """The text with user names, passwords and keys of addresses masked."""
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(f"{MASK}@", text))


def without_secrets(text: str) -> str:
    """The text without credentials of addresses and without secrets of the environment.

    Those are the values of variables whose names say so, as HF_TOKEN and AWS_SECRET_ACCESS_KEY.
    """
    found = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and not _NO_SECRET.search(name) and len(value) >= _SHORTEST
    ]
    for value in sorted(found, key=len, reverse=True):  # one may hold another
        text = text.replace(value, MASK)
    return without_credentials(text)
