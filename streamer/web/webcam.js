// Publishes the webcam over WHIP (RFC 9725) as a stream of its own.

const GATHERING = 2000; // milliseconds: after this the offer goes out with the addresses found so far

export async function publish(connection, name, onlost) {
  if (!navigator.mediaDevices) throw new Error("this browser gives cameras only to pages over https or on localhost");
  const media = await navigator.mediaDevices.getUserMedia({ video: { width: 1280, height: 720, frameRate: 25 } });
  const peer = new RTCPeerConnection();
  let session = null;
  const stop = async () => {
    media.getTracks().forEach((track) => track.stop());
    // Before the peer is closed: its goodbye would end the session, and the stream would wait for another publisher.
    if (session) await fetch(session, { method: "DELETE", headers: connection.headers() }).catch(() => {});
    peer.close();
  };
  try {
    peer.addTransceiver(media.getVideoTracks()[0], { direction: "sendonly", streams: [media] });
    await peer.setLocalDescription(await peer.createOffer());
    await gathered(peer);
    const reply = await fetch(new URL(`whip/${name}`, location.href), {
      method: "POST",
      headers: { "Content-Type": "application/sdp", ...connection.headers() },
      body: peer.localDescription.sdp,
    });
    if (reply.status !== 201) throw new Error((await reply.text()).slice(0, 200) || `the daemon answered ${reply.status}`);
    session = new URL(reply.headers.get("Location"), reply.url);
    await peer.setRemoteDescription({ type: "answer", sdp: await reply.text() });
  } catch (error) {
    await stop();
    throw error;
  }
  peer.onconnectionstatechange = () => {
    if (["failed", "closed"].includes(peer.connectionState)) stop().then(onlost);
  };
  return { stop };
}

function gathered(peer) {
  if (peer.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    setTimeout(resolve, GATHERING);
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && resolve());
  });
}
