#!/bin/sh
# Installs Streamer into /opt/streamer on Debian 12 or newer, as root: deploy/install.sh [FOLDER] [EXTRAS]
# FOLDER is a checkout (this one unless named); EXTRAS are what pip takes, daemon,fleet unless named.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
source=${1:-$here}
extras=${2:-daemon,fleet}
[ "$(id -u)" = 0 ] || { echo "install.sh: run it as root" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "install.sh: this is no Debian: apt-get is missing" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends python3 python3-venv ca-certificates
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "install.sh: Python 3.11 or newer is needed" >&2; exit 1; }
python3 -m venv /opt/streamer
pip="/opt/streamer/bin/pip --disable-pip-version-check install --no-cache-dir"
# The CPU build of torch where there is no NVIDIA card: PyPI's own brings CUDA.
if [ ! -e /dev/nvidiactl ] && [ -z "${STREAMER_CUDA:-}" ]; then
    $pip --index-url https://download.pytorch.org/whl/cpu torch || $pip torch
fi
$pip "$source[$extras]"
ln -sf /opt/streamer/bin/streamer /usr/local/bin/streamer
id streamer >/dev/null 2>&1 || useradd --system --home-dir /var/lib/streamer --shell /usr/sbin/nologin streamer
install -d -o streamer -g streamer -m 0700 /var/lib/streamer
install -d -m 0755 /etc/streamer
if [ -d /etc/systemd/system ]; then install -m 0644 "$here/deploy/streamer-fleet.service" /etc/systemd/system/; fi
[ -e /etc/streamer/fleet.secret ] || {
    (umask 077; od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >/etc/streamer/fleet.secret)
    chown streamer /etc/streamer/fleet.secret
}
streamer --version
