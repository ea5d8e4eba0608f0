"""Tokens that somebody else signs, as PyJWT writes them, at the real doors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from streamer.config import ConfigError, JwtConfig, parse_config
from streamer.server.auth import Gate
from streamer.server.errors import RequestError
from streamer.server.tokens import SignedTokens, known_tokens, signed_tokens
from tests.streamer.serving import Daemon

SIGNER = rsa.generate_private_key(65537, 2048)
STRANGER = rsa.generate_private_key(65537, 2048)
PUBLIC = SIGNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
CONFIG = JwtConfig(key_file="unread", audience="streamer", issuer="https://login.example")


def claims(**changed: Any) -> dict[str, Any]:
    whole = {
        "sub": "ada",
        "aud": "streamer",
        "iss": CONFIG.issuer,
        "exp": time.time() + 36_000,
        "scope": "view ask fly",
    }
    return {key: value for key, value in (whole | changed).items() if value is not None}


def signed(key: Any = SIGNER, algorithm: str = "RS256", **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm)


@pytest.mark.parametrize(
    ("scope", "granted"),
    [("view ask fly", {"view", "ask"}), (["admin"], {"admin"}), (None, set()), (7, set()), ("viewask", set())],
)
def test_subject_and_scopes_are_the_tokens(scope: Any, granted: set[str]) -> None:
    visitor = SignedTokens(CONFIG, PUBLIC).visitor(signed(scope=scope), True)
    assert (visitor.name, visitor.scopes, visitor.remote) == ("ada", granted, True)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (signed(exp=time.time() - 120), "expired"),
        (signed(exp=None), "not known"),
        (signed(sub=None), "not known"),
        (signed(aud="other"), "not known"),
        (signed(aud=None), "not known"),
        (signed(iss="https://evil.example"), "not known"),
        (signed(nbf=time.time() + 36_000), "not known"),
        (signed(STRANGER), "not known"),
        (signed(key="", algorithm="none"), "not known"),
        (signed()[:-8], "not known"),
        ("a.b.c", "not known"),
        ("nothing", "not known"),
        ("é.é.é", "not known"),
    ],
)
def test_others_are_refused_without_a_word_about_why(token: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        SignedTokens(CONFIG, PUBLIC).visitor(token, False)
    assert refused.value.code == "unauthorized" and token not in refused.value.message


def test_a_public_key_is_no_secret() -> None:
    """The classic confusion: a token signed by HS256 with the public key as its secret."""
    weak = jwt.api_jws.PyJWS()
    weak._algorithms["HS256"].prepare_key = lambda key: key  # type: ignore[method-assign]
    forged = weak.encode(json.dumps(claims()).encode(), PUBLIC, "HS256")  # type: ignore[arg-type]
    with pytest.raises(RequestError):
        SignedTokens(CONFIG, PUBLIC).visitor(forged, False)


def test_other_algorithms() -> None:
    curve, secret = ec.generate_private_key(ec.SECP256R1()), b"s" * 32
    public = curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    es = SignedTokens(CONFIG.model_copy(update={"algorithm": "ES256"}), public)
    assert es.visitor(signed(curve, "ES256"), False).name == "ada"
    hs = SignedTokens(CONFIG.model_copy(update={"algorithm": "HS256"}), secret)
    assert hs.visitor(signed(secret, "HS256"), False).name == "ada"
    with pytest.raises(RequestError):
        hs.visitor(signed(), False)


def test_the_doors_take_both_kinds(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(PUBLIC)
    server = {"jwt": {"key_file": str(tmp_path / "key.pem"), "audience": "streamer"}}
    with daemon.served(server=server) as served, httpx.Client(base_url=served.url) as http:
        for token, status in ((None, 401), ("x.y.z", 401), (signed(), 200), (signed(scope="publish"), 403)):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            assert http.get("/v1/models", headers=headers).status_code == status


def test_keys_that_are_none_are_refused_in_a_line(tmp_path: Path) -> None:
    for content, algorithm, said in (
        (b"nonsense", "RS256", "no public key for RS256"),
        (PUBLIC, "ES256", "no public key for ES256"),
        (b"short", "HS256", "5 bytes, it must have 32"),
        (None, "RS256", "No such file"),
    ):
        path = tmp_path / "key"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        keys = {"key_file": str(path), "audience": "streamer", "algorithm": algorithm}
        with pytest.raises(ConfigError, match=said) as refused:
            signed_tokens(parse_config({"server": {"jwt": keys}}))
        assert len(refused.value.problems) == 1 and str(path) in refused.value.problems[0]
    open_address = {"host": "0.0.0.0", "jwt": {"key_file": "k", "audience": "streamer"}}
    with pytest.raises(ConfigError, match="no TLS certificate") as refused:
        known_tokens(parse_config({"server": open_address}))
    assert "no token" not in str(refused.value)
    with pytest.raises(ConfigError, match="audience: is missing"):
        parse_config({"server": {"jwt": {"key_file": "k"}}})


def test_a_daemon_that_takes_signed_tokens_is_not_open() -> None:
    with pytest.raises(RequestError, match="bearer token"):
        Gate([], signed=SignedTokens(CONFIG, PUBLIC)).admit({"host": "127.0.0.1"}, "127.0.0.1")
