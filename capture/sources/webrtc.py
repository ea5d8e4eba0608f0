"""`whip://NAME`: a WebRTC peer, a browser or an encoder, that publishes to us; aiortc does ICE, DTLS, SRTP and decoding.

Whoever serves WHIP hands offers to `WhipSource.publish` and gets answers. Each source has one thread with an event loop of
its own, as aiortc parses every packet on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, TypeVar

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcdtlstransport import RTCCertificate
from aiortc.rtp import RtpPacket
from aiortc.sdp import candidate_from_sdp
from av.video.frame import VideoFrame

from capture.convert import Pictures
from capture.lifecycle import Action, State
from capture.source import SourceError, SourceOptions
from capture.sources.base import SourceShell

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_CODED = 32
"""Coded pictures that may wait for the decoder; beyond that they are dropped and a key frame is asked for."""
LATEST_REPAIR = 0.25
"""Seconds for which a lost packet is waited for before its picture is given up."""
KEY_FRAME_EVERY = 1.0
"""Seconds between requests for a key frame while no picture comes."""


class WhipSource(SourceShell):
    """Waits, as long as it takes, for a publisher; a new one takes the place of the one before."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        super().__init__(url, replace(options, patience=replace(options.patience, open=inf)), endless=True, live=True)
        self.answer_within = options.patience.open
        self.loop: asyncio.AbstractEventLoop | None = None
        self.peer: Peer | None = None
        self.asked = 0.0

    def open(self, generation: int) -> None:
        """See `SourceShell.open`: the publisher opens the connection."""
        self.lifecycle.reason = "waits for a publisher"

    def publish(self, offer: str, ended: Callable[[], None] = lambda: None) -> Future[str]:
        """Takes a publisher's SDP offer; the answer, with all candidates, or SourceError comes through the future.

        `ended` is called once, from a thread of the source's, when the publisher is gone, replaced or sent away.
        """
        return self.submit(self.accept(offer, ended))

    def trickle(self, candidates: Iterable[str]) -> Future[None]:
        """Takes more candidates of the present publisher (`candidate:…` lines). Raises SourceError through the future."""

        async def add() -> None:
            if self.peer is not None:
                await self.peer.add(candidates)

        return self.submit(add())

    def unpublish(self) -> None:
        """The publisher says goodbye."""
        peer = self.peer
        if peer is not None:
            self.gone(peer, "the publisher left")

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs `work` on the source's loop, in its thread."""
        with self.lock:
            if self.ended.is_set():
                work.close()
                raise SourceError(f"{self.name} has ended: it takes no publisher any more")
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self.serve, args=(self.loop,), name=f"source {self.name}", daemon=True)
                self.threads = [thread]
                thread.start()
            return asyncio.run_coroutine_threadsafe(work, self.loop)

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop's thread, until the source is stopped."""
        loop.run_forever()
        try:
            if self.peer is not None:
                loop.run_until_complete(self.peer.close())
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left))
        finally:
            loop.close()

    def leave(self) -> None:
        """See `SourceShell.leave`."""
        with self.lock:
            if self.loop is not None:
                self.loop.call_soon_threadsafe(self.loop.stop)

    async def accept(self, offer: str, ended: Callable[[], None]) -> str:
        """Makes a peer of an offer and lets it take the place of the one before."""
        peer = Peer(self, ended)
        try:
            answer = await peer.answer(offer)
            if self.ended.is_set():
                raise SourceError(f"{self.name} has ended: it takes no publisher any more")
        except BaseException:
            await peer.close()
            raise
        with self.lock:
            before, self.peer = self.peer, peer
            peer.generation = self.lifecycle.renew(time.monotonic(), "waits for the publisher's first picture")
        self.tell()
        asyncio.get_running_loop().call_later(self.answer_within, self.check, peer)
        if before is not None:
            await before.close()
        return answer

    def check(self, peer: Peer) -> None:
        """Sends a publisher away that has not sent a picture in time."""
        if not peer.pictures_seen:
            self.gone(peer, f"no picture within {self.answer_within:g} s of publishing")

    def gone(self, peer: Peer, reason: str) -> None:
        """A publisher is gone, or is sent away; from any thread."""
        with self.lock:
            action = self.lifecycle.failed(peer.generation, time.monotonic(), f"{self.name}: {reason}")
        self.act(action)

    def act(self, action: Action | None) -> None:
        """See `SourceShell.act`."""
        peer, loop = self.peer, self.loop
        if action is Action.LET_GO and peer is not None and loop is not None and not self.ended.is_set():
            self.peer = None
            asyncio.run_coroutine_threadsafe(peer.close(), loop)
        super().act(action)

    def tick(self) -> None:
        """See `SourceShell.tick`; asks for a key frame while a publisher's picture stalls."""
        super().tick()
        now = time.monotonic()
        peer, loop = self.peer, self.loop
        if self.lifecycle.state is State.STALLED and peer and loop and now - self.asked > KEY_FRAME_EVERY:
            self.asked = now
            asyncio.run_coroutine_threadsafe(peer.ask_for_key_frame(), loop)


class Peer:
    """One publisher; lives on its source's loop."""

    def __init__(self, source: WhipSource, ended: Callable[[], None]) -> None:
        self.source, self.ended = source, ended
        servers = [RTCIceServer(list(each.urls), each.username, each.credential) for each in source.options.ice_servers]
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        speak_rsa(self.connection)
        self.generation = 0
        self.pictures_seen = False
        self.closed = False
        self.receiver: RTCRtpReceiver | None = None
        self.watching: asyncio.Task[None] | None = None
        self.connection.on("connectionstatechange", self.changed)

    async def answer(self, offer: str) -> str:
        """The SDP answer. Raises SourceError for an offer that can't be taken."""
        try:
            await self.connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            videos = [each for each in self.connection.getTransceivers() if each.kind == "video"]
            if len(videos) != 1:
                raise SourceError(f"the offer has {len(videos)} videos: send one, in H264 or VP8")
            for transceiver in self.connection.getTransceivers():
                transceiver.direction = "recvonly" if transceiver in videos else "inactive"
            self.receiver = videos[0].receiver
            tame(self.receiver)
            await self.connection.setLocalDescription(await self.connection.createAnswer())
        except SourceError:
            raise
        except Exception as error:  # aiortc meets strangers' SDP with whatever its parsers stumble over
            said = str(error) or type(error).__name__
            raise SourceError(
                f"the offer can't be taken ({said}): send one video in H264 or VP8".replace("\n", " ")
            ) from None
        self.watching = asyncio.ensure_future(self.watch(self.receiver.track))
        return str(self.connection.localDescription.sdp)

    async def add(self, candidates: Iterable[str]) -> None:
        """Takes candidates that came after the offer."""
        mid = self.connection.getTransceivers()[0].mid
        for line in candidates:
            try:
                candidate = candidate_from_sdp(line.removeprefix("candidate:"))
                candidate.sdpMid = mid
                await self.connection.addIceCandidate(candidate)
            except Exception as error:  # as above
                raise SourceError(
                    f"the candidate {line[:80]!r} can't be taken: {error or type(error).__name__}"
                ) from None

    async def watch(self, track: MediaStreamTrack) -> None:
        """Takes every picture as soon as it is decoded, and hands over the newest."""
        pictures = Pictures(self.source.options.largest_side)
        reason = "the publisher ended its stream"
        try:
            while True:
                frame, skipped = newest(track, await track.recv())
                for _ in range(skipped):
                    self.source.mailbox.lose()
                self.pictures_seen = True
                picture = partial(pictures.make, frame)
                timestamp = None if frame.pts is None else frame.time
                if not self.source.deliver(self.generation, picture, timestamp, time.monotonic(), waits=False):
                    return
        except MediaStreamError:
            pass
        except Exception as error:
            log.exception("source %s: a picture could not be handed over", self.source.name)
            reason = str(error)
        if not self.closed:
            self.source.gone(self, reason)

    async def changed(self) -> None:
        """The connection's state changed; consent that is lost (RFC 7675) shows as failed."""
        state = self.connection.connectionState
        if state in ("failed", "closed") and not self.closed:
            self.source.gone(self, f"the publisher's connection is {state}")

    async def ask_for_key_frame(self) -> None:
        """Asks for a key frame by PLI, as there is no public way."""
        if self.receiver is not None:
            for synchronization in self.receiver.getSynchronizationSources():
                await self.receiver._send_rtcp_pli(synchronization.source)

    async def close(self) -> None:
        """Lets the publisher go; once."""
        if self.closed:
            return
        self.closed = True
        if self.watching is not None and self.watching is not asyncio.current_task():
            self.watching.cancel()
        await self.connection.close()
        self.ended()


class CodedQueue(queue.Queue[Any]):
    """The decoder's input with a bound: what comes while it is full is dropped, and `dropped` is set so that a PLI goes out."""

    def __init__(self, dropped: threading.Event) -> None:
        super().__init__()
        self.dropped = dropped

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """See `queue.Queue.put`; None, the end, always passes."""
        if item is not None and self.qsize() >= MOST_CODED:
            self.dropped.set()
            return
        super().put(item, block, timeout)


class RepairingBuffer(JitterBuffer):
    """aiortc's jitter buffer waits for a lost packet until its whole capacity is full; this one for LATEST_REPAIR seconds."""

    def __init__(self, capacity: int = 512, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(capacity, is_video=True)
        self.clock = clock
        self.incomplete_since: float | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """See `JitterBuffer.add`: whether a key frame is needed, and a complete picture."""
        needed, frame = super().add(packet)
        hole, after = self.hole(packet.sequence_number)
        if frame is not None or hole is None:
            self.incomplete_since = None
            return needed, frame
        if self.incomplete_since is None:
            self.incomplete_since = self.clock()
        if self.clock() - self.incomplete_since < LATEST_REPAIR:
            return needed, frame
        self.incomplete_since = None
        if self.smart_remove(after):
            self._origin = None
            return True, None
        return True, self._remove_frame(packet.sequence_number)

    def hole(self, newest: int) -> tuple[int | None, int]:
        """Distances from the oldest packet to the first that is missing before `newest`, None without, and to the one after."""
        if self._origin is None:
            return None, 0
        missing = None
        for distance in range((newest - self._origin) % 2**16 + 1):
            present = self._packets[(self._origin + distance) % self._capacity] is not None
            if not present and missing is None:
                missing = distance
            elif present and missing is not None:
                return missing, distance
        return None, 0


def tame(receiver: RTCRtpReceiver) -> None:
    """Bounds aiortc's queue of coded pictures and its patience with lost packets; both are private (aiortc 1.16)."""
    dropped = receiver._RTCRtpReceiver__decoder_error  # type: ignore[attr-defined]
    receiver._RTCRtpReceiver__decoder_queue = CodedQueue(dropped)  # type: ignore[attr-defined]
    receiver._RTCRtpReceiver__jitter_buffer = RepairingBuffer()  # type: ignore[attr-defined]


def newest(track: MediaStreamTrack, frame: Any) -> tuple[VideoFrame, int]:
    """The newest decoded picture, and how many were passed over: the track's queue has no bound, and is private."""
    waiting, skipped = track._queue, 0  # type: ignore[attr-defined]
    while not waiting.empty() and waiting._queue[0] is not None:
        frame, skipped = waiting.get_nowait(), skipped + 1
    return frame, skipped


class OpenCertificate(RTCCertificate):
    """A certificate whose DTLS speaks to peers with RSA keys (GStreamer's) as well; aiortc offers ECDSA suites alone."""

    def _create_ssl_context(self, srtp_profiles: Any) -> Any:
        context = super()._create_ssl_context(srtp_profiles)
        suites = ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES128-SHA", "AES256-SHA")
        names = [f"ECDHE-{key}-{suite}" for key in ("ECDSA", "RSA") for suite in suites]
        context.set_cipher_list(":".join(names).encode())
        return context


def speak_rsa(connection: RTCPeerConnection) -> None:
    """Gives a connection an OpenCertificate; the list is private (aiortc 1.16)."""
    connection._RTCPeerConnection__certificates = [OpenCertificate.generateCertificate()]  # type: ignore[attr-defined]
