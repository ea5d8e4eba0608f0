#!/bin/sh
# Installs the system packages that the tests use where it can (Debian, root); otherwise names what will be skipped. Never fails.
GSTREAMER="gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
gstreamer1.0-plugins-ugly gstreamer1.0-libav gstreamer1.0-rtsp gstreamer1.0-nice gir1.2-gst-rtsp-server-1.0
gir1.2-gst-plugins-bad-1.0 python3-gi"
NETWORK="iproute2 coturn"
CAMERA="gcc libc6-dev"
RTMP="ffmpeg"
BROWSER="chromium"
PROXY="nginx-light"
BROKER="mosquitto"
TABLE="redis-server"

missing() {
    for package in $1; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || printf '%s ' "$package"
    done
}

tell() {
    [ -z "$(missing "$GSTREAMER")" ] || echo "tests of RTSP and of GStreamer as a WHIP publisher will be skipped: $1"
    [ -z "$(missing "$NETWORK")" ] || echo "tests in network namespaces and through TURN will be skipped: $1"
    [ -z "$(missing "$CAMERA")" ] || echo "tests of v4l2:// will be skipped: $1"
    [ -z "$(missing "$RTMP")" ] || echo "tests of RTMP will be skipped: $1"
    [ -z "$(missing "$BROWSER")" ] || echo "tests in a browser will be skipped: $1"
    [ -z "$(missing "$BROKER")" ] || echo "tests of MQTT will be skipped: $1"
    [ -n "$(command -v redis-server)" ] || echo "tests of a fleet's table in Redis will be skipped: $1"
    [ -n "$(command -v nginx)" ] || [ -z "$(missing "$PROXY")" ] || echo "tests behind a reverse proxy will be skipped: $1"
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "no Debian packages here: tests of RTSP, of RTMP, of v4l2://, in network namespaces, through TURN, in a browser, behind a proxy, of MQTT and of Redis skip what they lack"
    exit 0
fi
wanted=$(missing "$GSTREAMER $NETWORK $CAMERA $RTMP $BROWSER $PROXY $BROKER $TABLE")
[ -n "$wanted" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    tell "run 'sudo apt-get install --no-install-recommends $wanted'"
    exit 0
fi
echo "installing for the tests: $wanted"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
{
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $wanted
} >"$log" 2>&1 || tail -n 3 "$log"
rm -f "$log"
tell "apt-get could not install $(missing "$GSTREAMER $NETWORK $CAMERA $RTMP $BROWSER $PROXY $BROKER $TABLE")"
exit 0
