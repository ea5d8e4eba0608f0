// Recordings: a file that is dropped is sent and read while a bar shows how far that is; then it is chosen and asked.

import { button, element } from "./watches.js";

const LOOK_EVERY = 1000; // milliseconds, while something is read

export class Recordings {
  // `root` holds the elements of index.html; `fetched` asks the daemon with its token, whose headers `headers` gives.
  constructor(root, { fetched, headers, onchoose, onfault }) {
    Object.assign(this, { root, fetched, headers, onchoose, onfault, chosen: null, sending: new Map(), known: [] });
    const file = root.querySelector("input[type=file]");
    file.addEventListener("change", () => { this.sendAll(file.files); file.value = ""; });
    for (const kind of ["dragenter", "dragover"]) root.addEventListener(kind, (event) => { event.preventDefault(); root.dataset.over = "true"; });
    for (const kind of ["dragleave", "drop"]) root.addEventListener(kind, (event) => { event.preventDefault(); delete root.dataset.over; });
    root.addEventListener("drop", (event) => this.sendAll(event.dataTransfer.files));
  }

  // What there is; looks again for as long as something is read.
  async load() {
    clearTimeout(this.timer);
    try {
      this.known = (await (await this.fetched("v1/recordings")).json()).recordings;
    } catch (error) {
      this.root.hidden = error.code === "not_found"; // a fleet's gateway keeps none
      if (!this.root.hidden && error.code !== "forbidden") this.onfault(error.message);
      return;
    }
    this.show();
    if (this.known.some((each) => each.state === "reading" || each.state === "waiting")) this.timer = setTimeout(() => this.load(), LOOK_EVERY);
  }

  async sendAll(files) {
    for (const file of files) await this.sendFile(file);
  }

  // Only an XMLHttpRequest tells how much of a body has gone.
  sendFile(file) {
    return new Promise((done) => {
      const request = new XMLHttpRequest();
      request.open("POST", `v1/recordings?${new URLSearchParams({ name: file.name })}`);
      for (const [name, value] of Object.entries(this.headers())) request.setRequestHeader(name, value);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.responseType = "json";
      request.upload.onprogress = (event) => { this.sending.set(file.name, event.loaded / file.size); this.show(); };
      request.onloadend = () => {
        this.sending.delete(file.name);
        if (request.status !== 201) this.onfault(request.response?.error?.message ?? `${file.name} could not be sent.`);
        this.load();
        done();
      };
      this.sending.set(file.name, 0);
      this.show();
      request.send(file);
    });
  }

  show() {
    const rows = [...this.sending].map(([name, part]) => element("li", "", element("p", "head", element("strong", "", name)), bar(part), element("small", "", "is sent")));
    for (const each of this.known) rows.push(this.row(each));
    this.root.querySelector("ul").replaceChildren(...rows);
    this.root.querySelector("#no-recordings").hidden = rows.length > 0;
  }

  row(each) {
    const ready = each.state === "ready";
    const pick = button(each.name, () => this.onchoose(each));
    pick.className = "choose";
    pick.disabled = !ready;
    pick.setAttribute("aria-pressed", String(each.name === this.chosen));
    const remove = button("✕", () => this.remove(each.name));
    remove.setAttribute("aria-label", `remove ${each.name}`);
    const size = `${span(each.of)}${each.bytes ? ` · ${Math.ceil(each.bytes / 1e6)} MB` : ""}`;
    const told = element("small", "", [ready ? size : `${each.state}: ${span(each.seconds)} of ${span(each.of)}`, each.note].filter(Boolean).join(" · "));
    const row = element("li", "", element("p", "head", pick, remove), ...(ready || each.state === "broken off" ? [] : [bar(each.of ? each.seconds / each.of : 0)]), told);
    row.dataset.state = each.state;
    return row;
  }

  choose(name) {
    this.chosen = name;
    this.show();
  }

  async remove(name) {
    try {
      await this.fetched(`v1/recordings/${encodeURIComponent(name)}`, "DELETE");
    } catch (error) {
      this.onfault(error.message);
    }
    if (this.chosen === name) this.onchoose(null);
    this.load();
  }
}

function bar(part) {
  const made = element("progress");
  made.max = 1;
  made.value = part;
  return made;
}

// Seconds as a recording's times are written.
export function span(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 3600)}:${String(Math.floor(whole / 60) % 60).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
}
