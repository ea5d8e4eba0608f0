"""Why an RTSP server refuses: FFmpeg tells only that it does."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

from capture.network.proxy import PORTS, unverified

LONGEST_HEAD = 16 * 1024
CHALLENGE = re.compile(r"^(?:WWW|Proxy)-Authenticate:\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
ALGORITHM = re.compile(r"algorithm\s*=\s*\"?([\w-]+)", re.IGNORECASE)
SPOKEN = frozenset({"md5", "md5-sess"})
"""Digest's algorithms (RFC 7616) that FFmpeg speaks, whose one is MD5 where none is named."""
ASKED = "the server asks for a user and password (401): put them into the URL (scheme://user:password@host/…)"
PASSWORD_MEND = "in a password write # as %23, / as %2F, ? as %3F, @ as %40, % as %25"
WRONG = f"the server refuses this user and password (401): check both, and {PASSWORD_MEND}"
FOREIGN = (
    "the server takes Digest with {} alone (401), which is not spoken here:"
    " allow MD5 beside it, or Basic, in the camera's security settings"
)


def challenges(address: str, seconds: float) -> list[str]:
    """What an RTSP server asks of a client without credentials, one entry a scheme. Raises OSError and ValueError."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    link = socket.create_connection((host, port), seconds)
    with link:
        if parts.scheme == "rtsps":
            link = unverified().wrap_socket(link, server_hostname=host)
        link.sendall(f"DESCRIBE {bare} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head and len(head) < LONGEST_HEAD and (data := link.recv(4096)):
            head += data
        link.close()
    return CHALLENGE.findall(head.decode("latin-1"))


def refusal(asked: list[str], *, named: bool) -> str:
    """A 401 as one clear line, from what the server asks for; `named` where the URL holds a user or password."""
    digests = [challenge for challenge in asked if challenge.lower().startswith("digest")]
    algorithms = [found[1] for each in digests if (found := ALGORITHM.search(each))]
    foreign = [each for each in algorithms if each.lower() not in SPOKEN]
    if asked and len(foreign) == len(asked):
        return FOREIGN.format(" or ".join(foreign))
    return WRONG if named else ASKED
