#!/usr/bin/python3
"""A WHIP publisher that is not a browser: whip_gstreamer.py URL [TOKEN] [SECONDS] sends a live H.264 test picture."""

import sys
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

url = sys.argv[1]
token = sys.argv[2] if len(sys.argv) > 2 else ""
seconds = int(sys.argv[3]) if len(sys.argv) > 3 else 12
Gst.init(None)
pipeline = Gst.parse_launch(
    "webrtcbin name=w bundle-policy=max-bundle videotestsrc is-live=true pattern=ball"
    " ! video/x-raw,width=640,height=360,framerate=25/1 ! videoconvert ! queue"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! video/x-h264,profile=constrained-baseline"
    " ! rtph264pay config-interval=-1 aggregate-mode=zero-latency"
    " ! application/x-rtp,media=video,encoding-name=H264,payload=96 ! w."
)
peer = pipeline.get_by_name("w")
alive: list = []  # GObject promises must outlive their callbacks
sent = False


def gathered(*_):
    global sent
    if sent or peer.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        return
    sent = True
    offer = peer.get_property("local-description").sdp.as_text()
    headers = {"Content-Type": "application/sdp"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(urllib.request.Request(url, data=offer.encode(), headers=headers)) as reply:
        answer = reply.read()
        print("answer", reply.status, reply.headers.get("Location"), flush=True)
    _, message = GstSdp.SDPMessage.new()
    GstSdp.sdp_message_parse_buffer(answer, message)
    description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
    peer.emit("set-remote-description", description, None)


def offered(promise, *_):
    promise.wait()
    reply = promise.get_reply()
    offer = reply.get_value("offer")
    alive.extend([promise, reply, offer])
    peer.emit("set-local-description", offer, None)


def negotiate(_):
    promise = Gst.Promise.new_with_change_func(offered, peer, None)
    alive.append(promise)
    peer.emit("create-offer", None, promise)


peer.connect("notify::ice-gathering-state", gathered)
peer.connect("on-negotiation-needed", negotiate)
peer.connect(
    "notify::connection-state", lambda *_: print("state", peer.get_property("connection-state").value_nick, flush=True)
)
pipeline.set_state(Gst.State.PLAYING)
loop = GLib.MainLoop()
GLib.timeout_add_seconds(seconds, loop.quit)
loop.run()
pipeline.set_state(Gst.State.NULL)
