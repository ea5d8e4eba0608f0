// What happened to the chosen stream: the span that is looked at, what is known of it, the newest entries, and search.

import { BUCKETS, Bar, look } from "./bar.js";

const SPANS = [60, 300, 900, 3600, 21600, 86400]; // seconds, as the buttons have them
const ENTRIES = 50;
const GAPS = 500;
const ASIDE = 150; // milliseconds after which a span that was moved to is asked for
const TYPING = 250; // milliseconds after which what was typed is searched for
const WRITTEN = 1000; // milliseconds after which an entry that was told is found by searching, and a new recording is there
const PART = 0.25; // of a span, by which a button moves it
const MINE = "timeline"; // the id of what is asked over the websocket

export class Timeline {
  // `root` holds the elements of index.html; `fetched` and `pictured` ask the daemon with its token, `send` over the websocket; `onmoment` hears
  // { at, entry, moving } of a moment that is to be seen, and null when now is; `onplay` that its clip is to be played.
  constructor(root, { fetched, pictured, send, onmoment, onplay, onspan, onfault }) {
    Object.assign(this, { root, fetched, pictured, send, onmoment, onplay, onspan, onfault, stream: null, length: SPANS[0], until: null, moment: null, ahead: 0, entries: [], more: false, turn: 0 });
    this.clear();
    this.bar = new Bar(this.find("#bar"), this.find("#legend"), this);
    this.find("#spans").addEventListener("click", ({ target }) => target.dataset.span && this.zoom(Number(target.dataset.span)));
    this.find("#earlier").addEventListener("click", () => this.move(-PART));
    this.find("#later").addEventListener("click", () => this.move(PART));
    this.find("#search").addEventListener("input", () => { clearTimeout(this.typed); this.typed = setTimeout(() => this.refresh(), TYPING); });
    this.find("#clip").addEventListener("click", (event) => this.download(event));
    this.find("#whole").addEventListener("click", () => this.onspan({ from: this.from, to: this.to }));
    this.find("#entries").addEventListener("scroll", ({ target }) => target.scrollHeight - target.scrollTop - target.clientHeight < 40 && this.older());
    setInterval(() => !document.hidden && this.until === null && this.stream && this.draw(), 500);
  }

  find(id) {
    return this.root.querySelector(id);
  }

  // The daemon's clock, Unix seconds.
  now() {
    return Date.now() / 1000 + this.ahead;
  }

  get to() {
    return this.until ?? this.now();
  }

  get from() {
    return this.to - this.length;
  }

  // Seconds of one column.
  get width() {
    return this.length / BUCKETS;
  }

  get recordings() {
    return this.recorded.map(([begin, end], i) => i === this.recorded.length - 1 && this.recording ? [begin, this.now()] : [begin, end]);
  }

  clear() {
    Object.assign(this, { counts: new Map(), gaps: [], recorded: [], recording: false });
  }

  // Shows a stream's timeline; null for no stream. Its entries are told from now on.
  choose(stream) {
    Object.assign(this, { stream, until: null, moment: null, empty: false });
    this.find("#search").value = "";
    this.clear();
    this.show([], false);
    this.draw();
    if (stream) this.send({ type: "memory.subscribe", stream, event_id: MINE });
    else this.say("no stream");
  }

  // What the daemon tells over the websocket; true where it was meant for the timeline.
  heard(event) {
    if (event.type === "error" && event.error.event_id === MINE) {
      this.fail(event.error);
      return true;
    }
    if (!event.type.startsWith("memory.") || event.stream !== this.stream) return false;
    if (event.type === "memory.added") this.add(event.entry);
    else this.refresh();
    return true;
  }

  add(entry) {
    this.empty = false;
    if (entry.kind === "state" || this.words().search) {
      clearTimeout(this.later);
      this.later = setTimeout(() => this.refresh(), WRITTEN);
    }
    if (this.words().search) return;
    const place = Math.floor(entry.wall / this.width);
    if (!this.counts.has(entry.kind)) this.counts.set(entry.kind, new Map());
    const counts = this.counts.get(entry.kind);
    counts.set(place, (counts.get(place) ?? 0) + 1);
    if (entry.kind === "gap" || entry.kind === "resumed") this.gaps.push(unseen(entry));
    this.show([entry, ...this.entries.filter(({ id }) => id !== entry.id)].sort((a, b) => b.id - a.id).slice(0, Math.max(ENTRIES, this.entries.length)), this.more);
    this.told();
  }

  mark(moment) {
    this.moment = moment;
    this.draw();
  }

  // A moment is to be seen; while it is `moving`, not for long.
  seek(at, final) {
    const moment = Math.min(at, this.now());
    if (moment < this.from || moment > this.to) this.until = this.bounded(moment + this.length / 2);
    this.moment = moment;
    this.draw();
    this.soon();
    this.onmoment({ at: moment, entry: null, moving: !final });
  }

  leave() {
    this.until = null;
    this.onmoment(null);
    this.soon();
  }

  play() {
    if (this.moment !== null) this.onplay(this.moment);
  }

  // One step nearer, or further; around the moment that is looked at, or one under the pointer.
  nearer(steps, around) {
    const place = SPANS.indexOf(this.length) - steps;
    if (SPANS[place]) this.zoom(SPANS[place], around);
  }

  zoom(length, around = this.moment) {
    const { from, to } = this;
    const middle = around !== null && around >= from && around <= to ? around : this.until === null ? null : (from + to) / 2;
    const part = middle === null ? 1 : (middle - from) / (to - from);
    this.until = middle === null ? null : this.bounded(middle + (1 - part) * length);
    this.length = length;
    this.counts = new Map(); // of columns of another width
    for (const button of this.find("#spans").children) button.setAttribute("aria-pressed", String(Number(button.dataset.span) === length));
    this.draw();
    this.soon();
  }

  move(part) {
    this.until = this.bounded(this.to + part * this.length);
    this.draw();
    this.soon();
  }

  // The end of a span, or null for one that goes on with the time.
  bounded(until) {
    return until >= this.now() - 0.5 ? null : until;
  }

  place(rest) {
    return `v1/streams/${encodeURIComponent(this.stream)}/${rest}`;
  }

  async ask(rest, query) {
    return (await this.fetched(this.place(`${rest}?${new URLSearchParams(query)}`))).json();
  }

  words() {
    const search = this.find("#search").value.trim();
    return search ? { search } : {};
  }

  soon() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.look(), ASIDE);
  }

  async refresh() {
    const [{ stream }, words] = [this, this.words()];
    try {
      const listed = await this.ask("timeline", { ...words, limit: ENTRIES });
      if (stream !== this.stream) return;
      this.show(listed.entries, listed.more);
      this.find("#found").textContent = listed.entries.length ? "" : words.search ? "nothing found" : "nothing happened yet";
      await this.look();
    } catch (error) {
      if (stream === this.stream) this.fail(error);
    }
  }

  // Asks what the span has. Columns begin at whole multiples of their width, so that they stay as they are while time goes on.
  async look() {
    if (!this.stream) return;
    const [turn, { width, stream }] = [++this.turn, this];
    const first = Math.floor(this.from / width);
    const span = { from: (first * width).toFixed(3), to: ((first + BUCKETS + 1) * width).toFixed(3) };
    try {
      const [density, gaps] = await Promise.all([
        this.ask("timeline/density", { ...span, ...this.words(), buckets: BUCKETS + 1 }),
        this.ask("timeline", { to: span.to, kind: "gap,resumed", limit: GAPS }),
      ]);
      if (turn !== this.turn || stream !== this.stream) return; // a later look is on its way, or was faster
      const ahead = density.now - Date.now() / 1000;
      if (Math.abs(ahead - this.ahead) > width / 2 && Math.abs(ahead - this.ahead) > 0.5) {
        this.ahead = ahead;
        return this.look();
      }
      this.counts = new Map(Object.entries(density.counts).map(([kind, each]) => [kind, new Map(each.map((count, i) => [first + i, count]))]));
      [this.gaps, this.recorded] = [gaps.entries.map(unseen), density.recorded];
      this.recording = this.recorded.length > 0 && this.recorded.at(-1)[1] > density.now - 5;
      this.told();
    } catch (error) {
      if (turn === this.turn && stream === this.stream) this.fail(error);
    }
  }

  async older() {
    if (!this.more || this.reaching) return;
    const { stream } = this;
    this.reaching = true;
    try {
      const listed = await this.ask("timeline", { ...this.words(), limit: ENTRIES, before: this.entries.at(-1).id });
      if (stream === this.stream) this.show([...this.entries, ...listed.entries], listed.more);
    } catch (error) {
      this.onfault(error.message);
    } finally {
      this.reaching = false;
    }
  }

  fail(error) {
    this.empty = error.code === "not_remembered";
    this.find("#found").textContent = this.empty ? "" : error.message;
    if (this.empty) this.show([], false);
    this.say(this.empty ? error.message : "");
    this.draw();
  }

  told() {
    const [first, last] = [Math.floor(this.from / this.width), Math.floor(this.to / this.width)];
    const any = [...this.counts.values()].some((each) => [...each].some(([place, count]) => count && place >= first && place <= last));
    this.say(any ? "" : this.words().search ? "nothing found in this span" : "nothing happened in this span");
    this.draw();
  }

  say(text) {
    this.find("#why").textContent = text;
    for (const tool of this.root.querySelectorAll("#tools, #search")) tool.hidden = this.empty;
  }

  show(entries, more) {
    const stamp = entries.map((entry) => entry.id).join();
    [this.entries, this.more] = [entries, more];
    if (stamp === this.listed) return;
    this.listed = stamp;
    const focused = document.activeElement?.dataset.entry;
    const there = new Map([...this.find("#entries").children].map((row) => [row.dataset.row, row]));
    this.find("#entries").replaceChildren(...entries.map((entry) => there.get(`${this.stream} ${entry.id}`) ?? this.row(entry)));
    if (focused) this.find(`#entries [data-entry="${focused}"]`)?.focus();
  }

  row(entry) {
    const row = document.createElement("li");
    row.dataset.row = `${this.stream} ${entry.id}`;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain";
    button.dataset.entry = entry.id;
    button.style.setProperty("--kind", `var(${look(entry.kind)[1]})`);
    const head = document.createElement("small");
    head.textContent = `${clock(entry.wall)} · ${entry.kind}`;
    const text = document.createElement("span");
    text.textContent = entry.text;
    button.append(head, text);
    if (entry.still) {
      const still = document.createElement("img");
      still.alt = "";
      this.picture(`timeline/${entry.id}.jpg`).then((url) => { still.src = url; }).catch(() => still.remove());
      button.prepend(still);
    }
    button.addEventListener("click", () => {
      if (entry.wall < this.from || entry.wall > this.to) this.until = this.bounded(entry.wall + this.length / 2);
      this.soon();
      this.onmoment({ at: entry.wall, entry, moving: false });
    });
    row.append(button);
    return row;
  }

  picture(rest) {
    return this.pictured(this.place(rest));
  }

  async download(event) {
    event.preventDefault();
    const link = this.find("#clip");
    if (link.ariaBusy === "true") return;
    link.ariaBusy = "true";
    try {
      const span = new URLSearchParams({ from: this.from.toFixed(3), to: this.to.toFixed(3) });
      const reply = await this.fetched(this.place(`clip?${span}`));
      const saved = document.createElement("a");
      saved.download = /filename="([^"]+)"/.exec(reply.headers.get("Content-Disposition"))?.[1] ?? "clip.mp4";
      saved.href = URL.createObjectURL(await reply.blob());
      saved.click();
      setTimeout(() => URL.revokeObjectURL(saved.href), 60000);
    } catch (error) {
      this.onfault(error.message);
    } finally {
      link.ariaBusy = "false";
    }
  }

  draw() {
    const { from, to, moment } = this;
    this.find("#span").textContent = `${clock(from)} – ${this.until === null ? "now" : clock(to)}`;
    const kept = this.recordings.some(([begin, end]) => end > from && begin < to);
    for (const tool of ["#clip", "#whole"]) this.find(tool).hidden = !kept;
    const slider = { "aria-valuemin": from, "aria-valuemax": to, "aria-valuenow": moment ?? to, "aria-valuetext": moment === null ? "now" : clock(moment) };
    for (const [name, value] of Object.entries(slider)) this.bar.canvas.setAttribute(name, value);
    this.bar.draw();
  }
}

// When nothing was seen, which an entry tells of: from its beginning on, or before the daemon went on with what it remembers.
function unseen({ kind, wall, data }) {
  return kind === "gap" ? [wall, wall + data.gap_s] : [wall - data.age_s, wall];
}

export function clock(wall) {
  const then = new Date(wall * 1000);
  const day = then.toDateString() === new Date().toDateString() ? "" : `${then.toLocaleDateString()} `;
  return day + then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}
