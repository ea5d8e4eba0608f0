"""What of a URL may be printed: credentials are left out, in whichever of the many shapes that cameras want them.

Every function takes time linear in its text, as a stranger may choose that.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

MOST_SHOWN = 4_096
"""Characters of a text that are looked through and shown; nobody reads more of a line."""
HIDDEN = "***"
PORT = re.compile(r":\d*['\"),.:;\]}>]*$")
"""A host's port at its end, and what a sentence may set behind it."""
HOST = re.compile(r"[^/?#@\s]+(?=[/?#\s'\"]|$)")
CERTAIN = re.compile(
    r"\[[0-9A-Fa-f:.%]+\](:\d+)?|localhost(:\d+)?|\d+\.\d+\.\d+\.\d+(:\d+)?|[\w.-]+\.[A-Za-z]\w+(:\d+)?|[\w-]+:\d+"
)
"""What can only be a host, where a single label might still be a part of a password that has an @ in it."""
QUERY = re.compile(r"\?[\w.-]*=")
KEY = re.compile(
    r"(?:(?<![\w.%\[\]-])|(?<=%26)|(?<=%3F))((?:[\w.\[\]-]|%(?:3\d|4[1-9A-F]|5[0-9ABDF]|6[1-9A-F]|7[0-9A]))+)(=|%3D)",
    re.IGNORECASE,
)
"""A parameter's name, of which letters, digits and brackets may be percent-encoded, as may be the whole of a query within another.

Not possessive: Python 3.11.2 then finds no name before `%3D`."""
NEXT_KEY = re.compile(r"_([a-z]+)=", re.IGNORECASE)
VALUE = re.compile(
    r"(?:(?!_(?:user|usr|username|password|passwd|pass|pwd|channel|stream|subtype|onvif|token)=)[^&\s;'\"]"
    r"|;(?![\w.-]++=)|['\"](?![\s:,)\]}>]|$))*",
    re.IGNORECASE,
)
"""A parameter's value. Cameras of XM's make write `user=admin_password=secret_channel=1` (and their makers tell so)."""
ENCODED_VALUE = re.compile(r"(?:(?!%26)[^&\s;'\"])*")
"""The same in a query that is percent-encoded itself."""
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
SECRET_WORDS = frozenset({
    "account", "acct", "basic", "bearer", "clave", "cookie", "digest", "hash", "hmac", "jwt", "kennwort", "key", "login", "loginuse",
    "logon", "md", "motdepasse", "nonce", "otp", "parola", "pas", "pass", "passkey", "pin", "private", "psd", "psk", "psw", "pw", "senha",
    "sess", "sid", "sig", "sign", "skey", "ticket", "uname", "user", "userid", "usr", "usrnm", "vcode", "verification", "verify",
    "wachtwoord",
})  # fmt: skip
SECRET_PARTS = re.compile(
    r"passw|pwd|pswd|psword|sessid|(?<!by|om|ow|nd|gh|ur)pass$|passphrase|passcode|token|secret|credential|signature|username|userpass|loginpas|session"
    r"|pw$|contrase"
    r"|(?:api|app|auth|access|stream|stm|private|wifi|wpa|wep)key|^auth(?!or(?!i[sz]))|^hdn|^cred"
)
SECRET_CODES = re.compile("(?:security|access|verify)code")
SHORT, PERSON = frozenset({"u", "un", "p"}), frozenset({"u", "un", "user", "usr", "username", "login"})
"""Names of parameters that are credentials where a person's stands beside a `p`."""
JSON_KEY = re.compile(r"""("|'|%22|%27)([\w.-]++)\1(?::|%3A)(?: |%20)?\1((?:(?!\1).)*)""", re.IGNORECASE)
"""Not possessive at its end: Python 3.11.2 takes a character too many of a group that ends by looking ahead."""
BARE = re.compile(r"(?<![^\s'\"(])(?:(?:rtsps?|rtmps?|https?)[:;]*[/\\]*)?+(?=[^\s:/@\\'\"(]{1,64}+:\S)", re.IGNORECASE)
"""What stands before a user where `://` is missing or misspelt."""
PATH_PAIR = re.compile(r"(rtsps?://[^/\s]++/\d++/)[^/:\s]++:[^/\s]++(?=/)", re.IGNORECASE)
"""Zmodo's `rtsp://camera/0/user:password/main`."""
PATH_KEY = re.compile(r"(rtsp[sx]?://[^/:\s]++:744[17]/)[^/?\s]++", re.IGNORECASE)
"""UniFi Protect's streams, whose path is their secret."""
PATH_ACCOUNT = re.compile(
    r"(https?://[^/\s]++/(?:live|movie|series)/)[^/?#\s]++/[^/?#\s]++(?=/\d++(?:\.(?:ts|m3u8|mp4|mkv))?(?:[?#\s]|$))"
)
"""Xtream's `http://server/live/user/password/7.ts`."""
PATH_TOKEN = re.compile(r"(/token/)[^/?#\s]++", re.IGNORECASE)
STREAM_ID = re.compile(r"(streamid=(?:read|publish):[^:&\s]*+:)[^&\s]++", re.IGNORECASE)
"""MediaMTX's `srt://server:8890?streamid=read:path:user:password`."""
NESTED = re.compile(
    r"(?<==)[A-Za-z][A-Za-z0-9+.-]{0,15}%(?:25){0,4}3A%(?:25){0,4}2F%(?:25){0,4}2F[^\s&]*", re.IGNORECASE
)
"""A URL as a parameter of another, encoded up to five times."""


def redact(text: str) -> str:
    """`text` with the credentials of every URL in it left out, and no more than MOST_SHOWN of its characters.

    User and password before a host go as `***@`, however little of the password is percent-encoded; parameters whose names
    tell of a credential keep their names.
    """
    left, text = len(text) - MOST_SHOWN, text[:MOST_SHOWN]
    text = NESTED.sub(_nested, text)
    first, *rest = text.split("://")
    parts = [first, *(_without_user(part) for part in rest)]
    text = _without_bare_user("://".join(parts))
    for shape in (PATH_PAIR, PATH_KEY, PATH_ACCOUNT, PATH_TOKEN, STREAM_ID):
        text = shape.sub(rf"\1{HIDDEN}", text)
    text = _without_values(JSON_KEY.sub(_json_value, text))
    return f"{text}… ({left:,} more characters)" if left > 0 else text


def _nested(match: re.Match[str]) -> str:
    """A percent-encoded URL, as it is where it holds no credentials."""
    plain = match[0]
    while "://" not in plain:
        plain = unquote(plain)
    shown = redact(plain)
    return match[0] if shown == plain else shown


def _json_value(match: re.Match[str]) -> str:
    """A JSON object's entry, whose value is hidden where its key tells of a credential."""
    return match[0][: match.start(3) - match.start()] + HIDDEN if _secret(match[2]) else match[0]


def _without_bare_user(text: str) -> str:
    """`text` without users and passwords before hosts that no `://` stands before, as one forgets it."""
    kept, done, word = [], 0, 0
    for match in BARE.finditer(text):
        at = match.end()
        if at < word:
            continue
        body = re.split(r"\s", text[at:], maxsplit=1)[0]
        word = at + len(body)
        if "://" not in body and (ends := _ends(body, len(body), certain=True)):
            kept += [text[done:at], HIDDEN]
            done = at + ends[0]
    return "".join([*kept, text[done:]])


def _without_user(part: str) -> str:
    """What follows `://`, up to the next URL, without the user and password that stand before its host."""
    body = re.split(r"\s", part, maxsplit=1)[0]
    authority = re.split(r"[/?#]", body, maxsplit=1)[0]
    if "@" not in authority and (at := authority.rfind("%40")) >= 0:
        return HIDDEN + part[at:]  # somebody encoded too much
    host_port = "@" not in authority and (
        ":" not in authority or bool(PORT.search(authority)) or authority.startswith("[") or _bare_address(authority)
    )
    if host_port:
        if not PORT.search(authority) or authority.startswith("["):
            return part
        # A password that begins with digits and a slash looks like a port, until a host follows.
        query = QUERY.search(body)
        ends = _ends(body, query.start() if query else len(body), certain=True)
        ends = [end for end in ends if body[end - 1] != "/"]
        return HIDDEN + part[ends[0] :] if ends else part
    inside = authority.rfind("@")
    if inside >= 0 and CERTAIN.fullmatch(authority[inside + 1 :]):
        return HIDDEN + part[inside:]
    ends = _ends(body, len(body), certain=True)
    query = QUERY.search(body)
    ends = [end for end in ends if end > inside and (query is None or end < query.start() or inside < 0)][:1]
    ends = ends or _ends(body, query.start() if query and inside >= 0 else len(body), certain=False)[-1:]
    if ends:
        return HIDDEN + part[max(ends[0], inside) :]
    if inside >= 0:
        return HIDDEN + part[inside:]
    line = part.split("\n", 1)[0]
    spaced = line.find("@")
    if spaced >= 0:
        return HIDDEN + part[spaced:]
    return f"{authority.partition(':')[0]}:{HIDDEN}{part[len(authority) :]}"


def _bare_address(authority: str) -> bool:
    """Whether it is an IPv6 address that lacks its brackets."""
    return authority.count(":") > 1 and set(authority) <= set("0123456789abcdefABCDEF:.")


def _ends(body: str, limit: int, *, certain: bool) -> list[int]:
    """Where in `body`, before `limit`, an @ stands that a host follows, or what can be nothing but a host."""
    found = []
    for at in re.finditer("@", body[:limit]):
        host = HOST.match(body, at.end())
        if host is not None and (CERTAIN.fullmatch(host[0]) if certain else not host[0].isdigit()):
            found.append(at.start())
    return found


def _without_values(text: str) -> str:
    """`text` without the values of parameters that are named like a credential."""
    kept, done, at = [], 0, 0
    keys = {unquote(match[1]).lower() for match in KEY.finditer(text)}
    short = SHORT if "p" in keys and keys & PERSON else frozenset()
    match = KEY.search(text)
    while match is not None:
        at = match.end()
        name = unquote(match[1])
        if name.lower() in short or _secret(name):
            encoded = match.re is KEY and match[2] != "="
            value = (ENCODED_VALUE if encoded else VALUE).match(text, at)
            end = value.end() if value else at
            kept += [text[done:at], HIDDEN]
            done = at = end
        match = NEXT_KEY.match(text, at) or KEY.search(text, at)
    return "".join([*kept, text[done:]])


def _secret(key: str) -> bool:
    """Whether a parameter's name tells of a credential: by its words, so that `signal` and `monkey` are none."""
    words = [word.lower() for word in WORDS.findall(key)]
    return bool(SECRET_CODES.search("".join(words))) or any(
        SECRET_PARTS.search(word) or (word in SECRET_WORDS and (word != "key" or word == words[-1])) for word in words
    )
