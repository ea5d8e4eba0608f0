"""Tokens that somebody else signs: JSON Web Tokens (RFC 7519)."""

from __future__ import annotations

from pathlib import Path

import jwt

from streamer.config import JwtConfig
from streamer.server.auth import SCOPES, DoorError, Visitor

SHORTEST_SECRET = 32
"""Bytes of a shared secret (RFC 7518, section 3.2: no fewer than its hash has)."""
LEEWAY = 30.0
"""Seconds that clocks may differ."""


class SignedTokens:
    """Recognises tokens by their signature, audience, issuer and time.

    Args:
        config: what a token must be like.
        key: the public key as PEM, or the shared secret of HS256.

    Raises:
        ValueError: the key is none for that algorithm.
    """

    def __init__(self, config: JwtConfig, key: bytes) -> None:
        self._config, self._key = config, key
        if config.algorithm == "HS256":
            if len(key) < SHORTEST_SECRET:
                raise ValueError(f"the secret has {len(key)} bytes, it must have {SHORTEST_SECRET}")
            return
        try:
            jwt.get_algorithm_by_name(config.algorithm).prepare_key(key)
        except (jwt.InvalidKeyError, ValueError, TypeError):
            raise ValueError(f"it holds no public key for {config.algorithm} in PEM") from None

    @classmethod
    def load(cls, config: JwtConfig) -> SignedTokens:
        """With the key from its file. Raises OSError, ValueError."""
        return cls(config, Path(config.key_file).read_bytes().strip())

    def visitor(self, token: str, remote: bool) -> Visitor:
        """Who a token says its bearer is: its subject, with those of its scopes that are known here.

        Raises DoorError: unauthorized.
        """
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[self._config.algorithm],
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise DoorError("unauthorized", "This token has expired: get a new one.") from None
        except jwt.PyJWTError:
            raise DoorError("unauthorized", "This token is not known here.") from None
        granted = claims.get(self._config.scope_claim, "")
        words = granted.split() if isinstance(granted, str) else granted if isinstance(granted, list) else []
        return Visitor(str(claims["sub"])[:128], frozenset(scope for scope in SCOPES if scope in words), remote)
