"""Addresses of cameras, and how they are shown: without what opens them."""

import re
from collections.abc import Container

from cld_stream.errors import UsageError

__all__ = ["is_camera", "is_device", "masked", "refuse_address", "require_complete"]

_DEVICE = re.compile(r"/dev/(video\d+|v4l/.+)")
_STREAM = re.compile(r"rtsps?://", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_NAME = r"([\w.-]*(?:us[er]|login|pas|ps?w|token|auth|key|secret|cred|sig)[\w.-]*)"
_IN_PATH = re.compile(rf"{_NAME}=[^&;/?#]*", re.IGNORECASE)
_IN_QUERY = re.compile(rf"{_NAME}=[^&;#]*", re.IGNORECASE)  # where a value may hold slashes, as base64 does


def is_device(text: str) -> bool:
    """Whether it names a capture device: `/dev/video0`, `/dev/v4l/by-id/...`."""
    return _DEVICE.fullmatch(text) is not None


def is_camera(text: str) -> bool:
    """Whether it names a camera: an `rtsp://` or `rtsps://` address, or a capture device."""
    return is_device(text) or _STREAM.match(text) is not None


def refuse_address(text: str) -> None:
    """An address that is no camera's is not taken for a path, nor shown with what opens it.

    Raises:
        UsageError: it is one.
    """
    if not is_camera(text) and _URL.match(text):
        raise UsageError(f"{masked(text)}: cameras are rtsp://, rtsps:// or /dev/video0. Download files first.")


def require_complete(text: str, known: Container[str]) -> None:
    """A camera that can never answer is a mistake, and not one that is down.

    Args:
        known: names of variables; a user or password that is `$NAME` must be one of them.

    Raises:
        UsageError: the address names no host, or a variable that is not known.
    """
    if is_device(text):
        return
    shown = masked(text)
    if re.match(r"\w+://(?:[:/?#]|$)", shown):
        raise UsageError(f"{shown}: no host in this address. Write rtsp://HOST/PATH; perhaps a variable is not set.")
    secret, at, _ = text.partition("://")[2].rpartition("@")
    for word in secret.split(":", 1) if at else ():
        name = _VARIABLE.fullmatch(word)
        if name and name[1] not in known:
            raise UsageError(
                f"{shown}: its user or password is ${name[1]}, and there is no such variable. Set it; in a service, by "
                "EnvironmentFile=. (A $ of the password's own is written %24.)"
            )


def masked(text: str) -> str:
    """An address without user and password, and with `***` for the value of every parameter that sounds like one.

    This is what is shown and stored, and what tells one camera from another. Other text is returned as it is.
    """
    if _URL.match(text) is None:
        return text
    scheme, _, rest = text.partition("://")
    end = re.search(r"[/?#]", rest)
    host, path = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if "@" in host:
        host = host.rpartition("@")[2]
    elif "@" in path and re.fullmatch(r"[^\[].*:\d*[^\d].*", host):  # no port: a password with a slash in it
        host, path = rest.rpartition("@")[2], ""
    path, mark, query = path.partition("?")
    return f"{scheme.lower()}://{host}" + _IN_PATH.sub(r"\1=***", path) + mark + _IN_QUERY.sub(r"\1=***", query)
