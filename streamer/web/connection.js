// The realtime websocket: reconnects with growing pauses, and asks for a token when the daemon wants one.

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10000;
const UNAUTHORISED = [3000, 4401, 1008];

export class Connection {
  constructor() {
    this.token = null;
    this.pause = FIRST_PAUSE;
    this.onevent = () => {};
    this.onstate = () => {};
    this.ondoor = () => {};
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  open() {
    const url = new URL("v1/realtime", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const kinds = this.token ? ["realtime", `openai-insecure-api-key.${this.token}`] : ["realtime"];
    this.onstate("connecting", "connecting");
    this.socket = new WebSocket(url, kinds);
    this.socket.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      if (event.type === "session.created") {
        this.pause = FIRST_PAUSE;
        this.onstate("open", "connected");
      }
      this.onevent(event);
    };
    this.socket.onclose = async ({ code, reason }) => {
      if (UNAUTHORISED.includes(code) || await this.refused()) {
        this.onstate("closed", "a token is needed");
        this.ondoor();
        return;
      }
      this.onstate("closed", reason || "disconnected, trying again");
      setTimeout(() => this.open(), this.pause);
      this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
    };
  }

  // A browser hides why a websocket's handshake failed; the same door over HTTP tells.
  async refused() {
    try {
      return (await fetch("v1/streams", { headers: this.headers() })).status === 401;
    } catch {
      return false;
    }
  }

  headers() {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }

  // What the daemon answers over HTTP. Throws an Error with its words, and its `code` where it has one.
  async fetched(place, method = "GET") {
    const reply = await fetch(place, { method, headers: this.headers() });
    if (reply.ok) return reply;
    const { error } = await reply.json().catch(() => ({}));
    throw Object.assign(new Error(error?.message ?? `the daemon answered ${reply.status}`), { code: error?.code });
  }

  // A place's picture as a data: URL, as an <img> can't bring the token along.
  async pictured(place) {
    const blob = await (await this.fetched(place)).blob();
    return new Promise((good, bad) => {
      const reader = new FileReader();
      reader.onload = () => good(reader.result);
      reader.onerror = () => bad(reader.error);
      reader.readAsDataURL(blob);
    });
  }

  send(event) {
    if (this.isOpen) this.socket.send(JSON.stringify(event));
  }
}
