"""What shows an engine that a request comes from its fleet: tokens of minutes or less, signed with the fleet's secret (RFC 7519)."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Collection

import jwt

HEAD = "fleet"
"""Who the head is to engines; visitors of the gateway have names that begin otherwise."""
VISITOR = "visitor:"
LEADS = "streamer-fleet:head"
"""For whom a gateway's pass is."""
LASTS = 30.0
"""Seconds that a pass of the head's is good for."""
VISIT_SECONDS = 30 * 86_400.0
"""What a visitor's pass is good for at most: the gateway closes what it no longer allows."""


def audience(engine: str, incarnation: str) -> str:
    """For whom a pass is: one process of one engine, so that it is worth nothing to another or to the next."""
    return f"streamer-fleet/{engine}/{incarnation}"


def head_pass(secret: bytes, engine: str, incarnation: str) -> str:
    """Lets the head give orders for half a minute."""
    claims = {"sub": HEAD, "aud": audience(engine, incarnation), "exp": time.time() + LASTS, "scope": "admin"}
    return jwt.encode(claims, secret, "HS256")


def link_key(secret: bytes) -> bytes:
    """Signs links to evidence, of all engines alike, so that the gateway knows them."""
    return hmac.new(secret, b"links to evidence", hashlib.sha256).digest()


def visitor_pass(
    secret: bytes, engine: str, incarnation: str, name: str, scopes: Collection[str], expires: float = math.inf
) -> str:
    """Lets a visitor of the gateway do there what it may do here."""
    claims = {
        "sub": f"{VISITOR}{name}"[:128],
        "aud": audience(engine, incarnation),
        "exp": min(time.time() + VISIT_SECONDS, expires),
        "scope": " ".join(sorted(scopes)),
    }
    return jwt.encode(claims, secret, "HS256")


def gateway_pass(secret: bytes) -> str:
    """Lets a gateway of the fleet follow its head for half a minute."""
    claims = {"sub": "gateway", "aud": LEADS, "exp": time.time() + LASTS}
    return jwt.encode(claims, secret, "HS256")


def is_gateway(secret: bytes, authorization: str) -> bool:
    """Whether whoever shows this is a gateway of the fleet."""
    kind, _, token = authorization.partition(" ")
    try:
        jwt.decode(token, secret, ["HS256"], audience=LEADS, options={"require": ["exp", "aud"]})
    except jwt.PyJWTError:
        return False
    return kind.lower() == "bearer"
