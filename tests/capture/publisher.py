"""A WebRTC publisher for tests, in a thread of its own: aiortc sending the moving square."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from fractions import Fraction

import av
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription, VideoStreamTrack

from tests.capture.lab import drawn


class Square(VideoStreamTrack):
    """The moving square, 25 times a second; `still` keeps silent."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.began, self.still = 0, time.monotonic(), False

    async def recv(self) -> av.VideoFrame:
        while self.still:
            await asyncio.sleep(0.05)
        self.n += 1
        await asyncio.sleep(max(0.0, self.began + self.n / 25 - time.monotonic()))
        frame = av.VideoFrame.from_ndarray(drawn(self.n), format="rgb24")
        frame.pts, frame.time_base = self.n * 3600, Fraction(1, 90_000)
        return frame


class Publisher:
    """Publishes once `exchange`, which is given an offer, has returned the answer."""

    def __init__(self, codec: str = "VP8", lose: Callable[[int], bool] | None = None) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name="publisher")
        self.thread.start()
        self.codec, self.lose = codec, lose
        self.track = Square()
        self.sent = self.asked = 0

    def publish(self, exchange: Callable[[str], str]) -> None:
        asyncio.run_coroutine_threadsafe(self.negotiate(exchange), self.loop).result(60)

    async def offer(self) -> str:
        self.connection = RTCPeerConnection()
        transceiver = self.connection.addTransceiver(self.track, direction="sendonly")
        codecs = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences([each for each in codecs if each.mimeType == f"video/{self.codec}"])
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def negotiate(self, exchange: Callable[[str], str]) -> None:
        offer = await self.offer()
        answer = await self.loop.run_in_executor(None, exchange, offer)
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        sender = self.connection.getSenders()[0]
        pli, send = sender._send_keyframe, sender.transport._send_rtp

        def asked() -> None:
            self.asked += 1
            pli()

        async def losing(packet: bytes) -> None:
            if not 192 <= packet[1] <= 208:
                self.sent += 1
                if self.lose is not None and self.lose(int.from_bytes(packet[2:4])):
                    return
            await send(packet)

        sender._send_keyframe = asked
        sender.transport._send_rtp = losing

    def vanish(self) -> None:
        """Falls silent without a word: no DELETE, no BYE, no close."""
        for transceiver in self.connection.getTransceivers():
            transport = transceiver.sender.transport.transport
            self.loop.call_soon_threadsafe(lambda t=transport: asyncio.ensure_future(t._connection.close()))
        self.track.still = True

    def close(self) -> None:
        if hasattr(self, "connection"):
            asyncio.run_coroutine_threadsafe(self.connection.close(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()
