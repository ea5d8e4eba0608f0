#!/usr/bin/python3
"""A real RTSP server on loopback: rtsp_server.py [PORT [USER:PASSWORD [CERTIFICATE.pem [SETTINGS]]]] prints its port once it listens.

SETTINGS is JSON over USUAL, and "codec": "hevc".
/live moves, /still never changes, /sound has no picture, /heard has both, /large is 1280×720, /sparse has a key frame only every 10 s,
/slow has two frames a second. CERTIFICATE.pem, certificate and key in one, makes it rtsps.
"""

import json
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtspServer  # noqa: E402

SOURCE = "( videotestsrc is-live=true pattern={pattern} ! video/x-raw,width={width},height={height},framerate={rate}/1"
H264 = " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={key} bitrate=600 ! rtph264pay name=pay0 pt=96 config-interval=1 )"
HEVC = " ! x265enc tune=zerolatency speed-preset=ultrafast key-int-max={key} ! rtph265pay name=pay0 pt=96 config-interval=1 )"
USUAL = {"pattern": "ball", "width": 320, "height": 180, "rate": 25, "key": 25, "codec": "h264"}
MOUNTS = {
    "/live": (SOURCE + H264, {}),
    "/still": (SOURCE + H264, {"pattern": "smpte75"}),
    "/large": (SOURCE + H264, {"width": 1280, "height": 720}),
    "/sparse": (SOURCE + H264, {"key": 250}),
    "/slow": (SOURCE + H264, {"rate": 2, "key": 20}),
    "/heard": (SOURCE + H264[:-1] + "audiotestsrc is-live=true ! voaacenc ! rtpmp4gpay name=pay1 pt=97 )", {}),
    "/sound": ("( audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay0 pt=0 )", {}),
}

Gst.init(None)
port, user, certificate = (*sys.argv[1:4], "", "", "")[:3]
USUAL |= json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port or "0")
if user or certificate:
    auth = GstRtspServer.RTSPAuth()
    if certificate:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(certificate))
    if user:
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*user.split(":")), token)
    server.set_auth(auth)
for path, (launch, settings) in MOUNTS.items():
    factory = GstRtspServer.RTSPMediaFactory()
    settings = USUAL | settings
    factory.set_launch((launch if settings["codec"] == "h264" else launch.replace(H264, HEVC)).format(**settings))
    # Not shared: that fails, or crashes, where one player comes at the moment that another comes or goes.
    factory.set_shared(False)
    if user:
        factory.add_role_from_structure(
            Gst.Structure.from_string(
                "viewer, media.factory.access=(boolean)true, media.factory.construct=(boolean)true"
            )[0]
        )
    server.get_mount_points().add_factory(path, factory)
if server.attach(None) == 0:
    sys.exit(f"port {port} is taken")
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
