"""WHIP request by request, against RFC 9725."""

import itertools
from typing import Any

import pytest

from protocols.fields import ProtocolError
from protocols.whip import FRAGMENT, SDP, Decision, End, Publish, Reply, Trickle, WhipEndpoint

OFFER = "\r\n".join(
    [
        *("v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0 1"),
        *("m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=mid:0", "a=sendonly", "a=rtpmap:111 opus/48000/2"),
        *("m=video 9 UDP/TLS/RTP/SAVPF 96 98", "c=IN IP4 0.0.0.0", "a=mid:1", "a=sendonly"),
        *("a=ice-ufrag:abcd", "a=ice-pwd:0123456789012345678901", "a=fingerprint:sha-256 00:11", "a=setup:actpass"),
        *("a=rtpmap:96 VP8/90000", "a=rtpmap:98 AV1/90000", ""),
    ]
)


class Talk:
    def __init__(self) -> None:
        numbers = itertools.count(1)
        self.endpoint = WhipEndpoint(new_id=lambda: f"session-{next(numbers)}")

    def request(self, method: str, session: str | None = None, kind: str = "", body: str = "", **more: str) -> Decision:
        headers = {"content-type": kind, **{name.replace("_", "-"): value for name, value in more.items()}}
        return self.endpoint.request(method, "door", session, headers, body.encode())

    def publish(self) -> tuple[str, Reply]:
        publish = self.request("POST", kind=SDP, body=OFFER)
        assert isinstance(publish, Publish)
        return self.endpoint.published(publish, "v=0 answer")

    def refused(self, *arguments: Any, **fields: Any) -> str:
        with pytest.raises(ProtocolError) as error:
            self.request(*arguments, **fields)
        return error.value.code


def test_publishing_from_offer_to_end() -> None:
    talk = Talk()
    assert talk.request("POST", kind="Application/SDP; charset=utf-8", body=OFFER) == Publish("door", OFFER)
    session, reply = talk.publish()
    assert (reply.status, reply.body) == (201, "v=0 answer")
    assert reply.headers["Location"] == f"/whip/door/{session}" and reply.headers["Content-Type"] == SDP
    assert reply.headers["ETag"].startswith('"')
    assert talk.endpoint.session_of("door") == session
    fragment = "a=ice-ufrag:abcd\r\na=mid:1\r\na=candidate:1 1 udp 1 10.0.0.1 5 typ host\r\na=end-of-candidates\r\n"
    trickle = talk.request("PATCH", session, FRAGMENT, fragment, if_match=reply.headers["ETag"])
    assert trickle == Trickle("door", session, ("candidate:1 1 udp 1 10.0.0.1 5 typ host",), Reply(204))
    end = talk.request("DELETE", session)
    assert end == End("door", session, Reply(200))
    assert talk.refused("DELETE", session) == "not_found"
    assert talk.endpoint.session_of("door") is None


def test_options_tell_what_is_accepted() -> None:
    talk = Talk()
    reply = talk.request("OPTIONS")
    assert isinstance(reply, Reply) and reply.status == 204 and reply.headers["Accept-Post"] == SDP


def test_session_that_ended_here_is_gone() -> None:
    talk = Talk()
    session, _ = talk.publish()
    talk.endpoint.ended(session)
    assert talk.refused("PATCH", session, FRAGMENT) == "not_found"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
def test_other_methods_at_the_endpoint(method: str) -> None:
    assert Talk().refused(method) == "method_not_allowed"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST"])
def test_other_methods_at_the_session(method: str) -> None:
    talk = Talk()
    session, _ = talk.publish()
    assert talk.refused(method, session, SDP, OFFER) == "method_not_allowed"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "invalid_sdp"),
        ("v=0", "invalid_sdp"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "invalid_sdp"),
        (OFFER.replace("a=ice-ufrag:abcd\r\n", ""), "invalid_sdp"),
        (OFFER.replace("m=video", "m=application"), "invalid_sdp"),
        (OFFER.replace("m=video 9", "m=video 0"), "invalid_sdp"),
        (OFFER + OFFER[OFFER.index("m=video") :], "invalid_sdp"),
        (OFFER.replace("a=mid:1\r\na=sendonly", "a=mid:1\r\na=recvonly"), "invalid_sdp"),
        (OFFER.replace("VP8", "VP9"), "unsupported_codec"),
        (OFFER + "x" * 300_000, "payload_too_large"),
    ],
)
def test_bad_offers(body: str, code: str) -> None:
    assert Talk().refused("POST", kind=SDP, body=body) == code


def test_offers_of_another_kind_or_name() -> None:
    talk = Talk()
    assert talk.refused("POST", kind="application/json", body=OFFER) == "unsupported_media_type"
    with pytest.raises(ProtocolError) as error:
        talk.endpoint.request("POST", "../etc", None, {"content-type": SDP}, OFFER.encode())
    assert error.value.code == "not_found"


def test_bad_patches() -> None:
    talk = Talk()
    session, _ = talk.publish()
    assert talk.refused("PATCH", session, SDP, "") == "unsupported_media_type"
    assert talk.refused("PATCH", session, FRAGMENT, "", if_match='"other"') == "precondition_failed"
    assert talk.refused("PATCH", session, FRAGMENT, "", if_match="*") == "ice_restart"
    assert talk.refused("PATCH", session, FRAGMENT, "a=ice-ufrag:anew\r\n") == "ice_restart"
    with pytest.raises(ProtocolError) as error:
        talk.endpoint.request("DELETE", "yard", session, {}, b"")
    assert error.value.code == "not_found"
