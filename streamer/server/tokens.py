"""The tokens that a configuration accepts, from wherever it says they are, and those that somebody else signs (RFC 7519)."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from streamer.config import Config, ConfigError, JwtConfig, ServerConfig
from streamer.server.auth import SCOPES, Signed, Token, Visitor, is_loopback, read_tokens
from streamer.server.errors import RequestError

SHORTEST_SECRET = 32
"""Bytes of a shared secret (RFC 7518, section 3.2: no fewer than its hash has)."""
LEEWAY = 30.0
"""Seconds that clocks may differ."""


def known_tokens(config: Config) -> list[Token]:
    """The tokens of configuration, file and $STREAMER_TOKENS (entries separated by ';').

    Raises ConfigError: one can't be read; or the address is reachable from elsewhere without tokens or without TLS and
    that was not said twice.
    """
    server = config.server
    tokens = [
        Token(token.name, token.digest.removeprefix("sha256:"), frozenset(token.scopes)) for token in server.tokens
    ]
    try:
        if server.token_file is not None:
            lines = Path(server.token_file).read_text(encoding="utf-8").splitlines()
            tokens += read_tokens(lines, f"server.token_file {server.token_file}")
        tokens += read_tokens(os.environ.get("STREAMER_TOKENS", "").split(";"), "$STREAMER_TOKENS")
        tls_context(server)
    except ssl.SSLError as error:
        raise ConfigError(
            [f"server.certificate: {server.certificate} and its key don't fit ({error.reason})"]
        ) from None
    except OSError as error:
        file = error.filename or f"{server.certificate} or {server.key}"
        raise ConfigError(
            [f"server: {file} can't be read ({error.strerror}): check its path and permissions"]
        ) from None
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    missing = [] if tokens or server.jwt is not None else ["token"]
    missing += [] if server.certificate else ["TLS certificate"]
    if missing and not is_loopback(server.host) and server.insecure < 2:
        raise ConfigError(
            [
                f"server.host: {server.host!r} can be reached from other machines, and there is no "
                f"{' and no '.join(missing)}: add what is missing, listen at 127.0.0.1, or say it twice (--insecure --insecure, "
                "server.insecure: 2)"
            ]
        )
    return tokens


def tls_context(server: ServerConfig) -> ssl.SSLContext | None:
    """What the doors speak TLS with; None where they speak plainly. Raises OSError, of which ssl.SSLError is one kind."""
    if server.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.certificate, server.key)
    return context


def signed_tokens(config: Config) -> Signed | None:
    """Who recognises tokens that somebody else signs, if they are accepted. Raises ConfigError."""
    accepted = config.server.jwt
    if accepted is None:
        return None
    try:
        return SignedTokens.load(accepted)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([f"server.jwt.key_file: {accepted.key_file} can't be used ({why})"]) from None


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
        import jwt  # here, as it takes long to import and few daemons accept such tokens

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

        Raises RequestError: unauthorized.
        """
        import jwt

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
            raise RequestError("unauthorized", "This token has expired: get a new one.") from None
        except jwt.PyJWTError:
            raise RequestError("unauthorized", "This token is not known here.") from None
        granted = claims.get(self._config.scope_claim, "")
        words = granted.split() if isinstance(granted, str) else granted if isinstance(granted, list) else []
        scopes = frozenset(scope for scope in SCOPES if scope in words)
        return Visitor(str(claims["sub"])[:128], scopes, remote, expires=float(claims["exp"]) + LEEWAY)
