"""The tokens that a configuration accepts, from wherever it says they are."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from streamer.config import Config, ConfigError
from streamer.server.auth import Signed, Token, is_loopback, read_tokens


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
        if server.certificate is not None:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(server.certificate, server.key)
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


def signed_tokens(config: Config) -> Signed | None:
    """Who recognises tokens that somebody else signs, if they are accepted. Raises ConfigError."""
    accepted = config.server.jwt
    if accepted is None:
        return None
    from streamer.server.signed import SignedTokens

    try:
        return SignedTokens.load(accepted)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([f"server.jwt.key_file: {accepted.key_file} can't be used ({why})"]) from None
