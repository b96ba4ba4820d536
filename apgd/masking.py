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
# The same of a text that is one address, in which quotes and spaces are a part of it.
_WHOLE_USER = re.compile(r"(?<=://)(?<!sqlite://).*@", re.DOTALL)
_WHOLE_QUERY = re.compile(
    r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token|key|credential|signature)[^=&;]*=)[^&]+"
)
_SECRET_NAME = re.compile(
    r"(?i)(^|_)(token|secret|passwd|credentials?|api_?key|access_key|secret_key|private_key|"
    r"connection_string)(_|$)|(password|passphrase)(_|$)|(^|_)pass$|_(key|pwd|pat|auth)$"
)
"""Of variables; PWD and OLDPWD are folders, and SSH_ASKPASS is a program."""
_NO_SECRET = re.compile(r"(?i)(_(path|file|dir|id|mode|url|uri)|public_key)$")


def without_credentials(text: str) -> str:
    """The text with user names, passwords and keys of addresses masked."""
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(f"{MASK}@", text))


def masked_address(address: str) -> str:
    """An address, or an option with one, without user name, password and keys.

    Whatever stands between `://` and the last @ is masked, also where it holds quotes or spaces.
    """
    return _WHOLE_QUERY.sub(rf"\1{MASK}", _WHOLE_USER.sub(f"{MASK}@", address))


def without_secrets(text: str, *addresses: str) -> str:
    """The text without credentials of addresses and without secrets of the environment.

    Those are the values of variables whose names say so, as HF_TOKEN and AWS_SECRET_ACCESS_KEY.

    Args:
        text: any text.
        *addresses: what may stand in it; their credentials are masked whatever they hold.
    """
    for address in addresses:
        for user in _WHOLE_USER.findall(address):
            text = text.replace(f"://{user}", f"://{MASK}@")
    found = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and not _NO_SECRET.search(name) and len(value) >= _SHORTEST
    ]
    for value in sorted(found, key=len, reverse=True):  # one may hold another
        text = text.replace(value, MASK)
    return without_credentials(text)
