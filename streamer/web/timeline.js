// What happened to the chosen stream: a bar of how much when, the newest entries, and the way to a moment of them.

const SPANS = { minute: 60, hour: 3600, day: 86400 };
const BUCKETS = 120;
const ENTRIES = 50;
const GAPS = 200;
const EVERY = 2000; // milliseconds between two looks at what came
const TYPING = 250; // milliseconds after which what was typed is searched for
const PART = 0.25; // of a span, by which an arrow key moves it
const KINDS = [ // what an entry's kind begins with, its colour, and what the legend calls it
  ["note", "--good", "notes"],
  ["question", "--accent", "questions"],
  ["watch", "--watch", "watches"],
  ["drops", "--warn", "drops"],
  ["gap", "--bad", "nothing seen"],
  ["", "--quiet", "other"],
];

export class Timeline {
  // `root` holds the elements of index.html; `fetched` asks the daemon with its token; `onmoment` hears {at, entry} of a click.
  constructor(root, { fetched, onmoment, onfault }) {
    Object.assign(this, { root, fetched, onmoment, onfault, stream: null, span: "minute", until: null, moment: null, seen: null, gaps: [], listed: "", turn: 0 });
    this.bar = this.find("#bar");
    this.find("#spans").addEventListener("click", ({ target }) => target.dataset.span && this.zoom(target.dataset.span));
    this.find("#earlier").addEventListener("click", () => this.move(-PART));
    this.find("#later").addEventListener("click", () => this.move(PART));
    this.bar.addEventListener("click", (event) => this.pick((event.clientX - this.bar.getBoundingClientRect().left) / this.bar.clientWidth));
    root.addEventListener("keydown", (event) => this.key(event));
    this.find("#search").addEventListener("input", () => { clearTimeout(this.typed); this.typed = setTimeout(() => this.look(), TYPING); });
    this.find("#clip").addEventListener("click", (event) => this.download(event));
    new ResizeObserver(() => this.draw()).observe(this.bar);
    setInterval(() => !document.hidden && !this.empty && this.look(), EVERY);
  }

  find(id) {
    return this.root.querySelector(id);
  }

  // Shows a stream's timeline; null for no stream.
  choose(stream) {
    Object.assign(this, { stream, until: null, moment: null, seen: null, gaps: [], empty: false });
    this.find("#search").value = "";
    this.rows([]);
    this.draw();
    this.look();
  }

  mark(moment) {
    this.moment = moment;
    this.draw();
  }

  zoom(span) {
    const middle = this.until === null || !this.seen ? null : (this.seen.from + this.seen.to) / 2;
    this.span = span;
    this.until = middle && this.bounded(middle + SPANS[span] / 2);
    for (const button of this.find("#spans").children) button.setAttribute("aria-pressed", String(button.dataset.span === span));
    this.look();
  }

  move(part) {
    if (!this.seen) return;
    this.until = this.bounded(this.seen.to + part * SPANS[this.span]);
    this.look();
  }

  // The end of a span, or null for one that goes on with the time.
  bounded(until) {
    return until >= this.newest - 0.5 ? null : until;
  }

  key(event) {
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const names = Object.keys(SPANS);
    const zoomed = (step) => names[Math.max(0, Math.min(names.length - 1, names.indexOf(this.span) + step))];
    const does = {
      "+": () => this.zoom(zoomed(-1)), "=": () => this.zoom(zoomed(-1)), "-": () => this.zoom(zoomed(1)),
      ArrowLeft: () => this.move(-PART), ArrowRight: () => this.move(PART),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  }

  pick(part) {
    if (!this.seen) return;
    this.onmoment({ at: this.seen.from + Math.max(0, Math.min(1, part)) * (this.seen.to - this.seen.from), entry: null });
  }

  place(rest) {
    return `v1/streams/${encodeURIComponent(this.stream)}/${rest}`;
  }

  async look() {
    if (!this.stream) return this.say("no stream");
    const turn = ++this.turn;
    const length = SPANS[this.span];
    const span = this.until === null
      ? { from: `${length} seconds ago`, to: "now" }
      : { from: (this.until - length).toFixed(3), to: this.until.toFixed(3) };
    const search = this.find("#search").value.trim();
    const words = search ? { search } : {};
    const ask = async (rest, query) => (await this.fetched(this.place(`${rest}?${new URLSearchParams(query)}`))).json();
    try {
      const [density, entries, gaps] = await Promise.all([
        ask("timeline/density", { ...span, ...words, buckets: BUCKETS }),
        ask("timeline", { ...words, limit: ENTRIES }),
        ask("timeline", { to: span.to, kind: "gap", limit: GAPS }),
      ]);
      if (turn !== this.turn) return; // a later look is on its way, or was faster
      this.seen = density;
      if (this.until === null) this.newest = density.to;
      this.gaps = gaps.entries;
      this.rows(entries.entries);
      this.find("#clip").hidden = !density.recorded;
      const any = Object.keys(density.counts).length > 0;
      this.say(any ? "" : search ? "nothing found in this span" : "nothing happened in this span");
      this.find("#found").textContent = entries.entries.length ? "" : search ? "nothing found" : "nothing happened yet";
    } catch (error) {
      if (turn !== this.turn) return;
      this.empty = error.code === "not_remembered";
      this.find("#found").textContent = this.empty ? "" : error.message;
      if (this.empty) this.rows([]);
      this.say(this.empty ? error.message : "");
    }
    this.draw();
  }

  say(text) {
    this.find("#why").textContent = text;
    for (const tool of this.root.querySelectorAll("#tools, #search")) tool.hidden = this.empty;
  }

  rows(entries) {
    const stamp = entries.map((entry) => entry.id).join();
    if (stamp === this.listed) return;
    this.listed = stamp;
    const focused = document.activeElement?.dataset.entry;
    this.find("#entries").replaceChildren(...entries.map((entry) => this.row(entry)));
    if (focused) this.find(`#entries [data-entry="${focused}"]`)?.focus();
  }

  row(entry) {
    const row = document.createElement("li");
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
    button.addEventListener("click", () => this.onmoment({ at: entry.wall, entry }));
    row.append(button);
    return row;
  }

  // A data: URL, as an <img> can't bring the token along.
  async picture(rest) {
    const blob = await (await this.fetched(this.place(rest))).blob();
    return new Promise((good, bad) => {
      const reader = new FileReader();
      reader.onload = () => good(reader.result);
      reader.onerror = () => bad(reader.error);
      reader.readAsDataURL(blob);
    });
  }

  async download(event) {
    event.preventDefault();
    const link = this.find("#clip");
    if (!this.seen || link.ariaBusy === "true") return;
    link.ariaBusy = "true";
    try {
      const span = new URLSearchParams({ from: this.seen.from.toFixed(3), to: this.seen.to.toFixed(3) });
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
    const { clientWidth: width, clientHeight: height } = this.bar;
    const style = getComputedStyle(this.bar);
    const colour = (name) => style.getPropertyValue(name);
    this.bar.width = width * devicePixelRatio;
    this.bar.height = height * devicePixelRatio;
    const pen = this.bar.getContext("2d");
    pen.scale(devicePixelRatio, devicePixelRatio);
    const used = new Set();
    this.find("#span").textContent = this.seen ? `${clock(this.seen.from)} – ${this.until === null ? "now" : clock(this.seen.to)}` : "";
    if (this.seen) {
      const { from, to, counts } = this.seen;
      const x = (wall) => ((wall - from) / (to - from)) * width;
      for (const gap of this.gaps) {
        const [left, right] = [Math.max(0, x(gap.wall)), Math.min(width, x(gap.wall + gap.data.gap_s))];
        if (right <= 0 || left >= width) continue;
        used.add(look("gap")[2]);
        hatch(pen, left, Math.max(2, right - left), height, colour("--bad"));
      }
      const kinds = Object.keys(counts).filter((kind) => kind !== "gap");
      const totals = Array.from({ length: BUCKETS }, (_, i) => kinds.reduce((sum, kind) => sum + counts[kind][i], 0));
      const unit = (height - 6) / Math.max(4, ...totals);
      const low = new Array(BUCKETS).fill(height);
      for (const kind of kinds) {
        const [, variable, name] = look(kind);
        used.add(name);
        pen.fillStyle = colour(variable);
        counts[kind].forEach((count, i) => {
          low[i] -= count * unit;
          pen.fillRect((i * width) / BUCKETS, low[i], Math.max(2, width / BUCKETS - 1), count * unit);
        });
      }
      if (this.moment !== null && this.moment >= from && this.moment <= to) {
        pen.fillStyle = colour("--text");
        pen.fillRect(x(this.moment) - 1, 0, 2, height);
      }
    }
    this.find("#legend").replaceChildren(...KINDS.filter(([, , name]) => used.has(name)).map(([, variable, name]) => {
      const sign = document.createElement("span");
      sign.textContent = name;
      sign.style.setProperty("--kind", `var(${variable})`);
      return sign;
    }));
  }
}

export function clock(wall) {
  const then = new Date(wall * 1000);
  const day = then.toDateString() === new Date().toDateString() ? "" : `${then.toLocaleDateString()} `;
  return day + then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

function look(kind) {
  return KINDS.find(([begin]) => kind.startsWith(begin));
}

// Stripes, so that a gap is told from what happened without its colour too.
function hatch(pen, left, width, height, colour) {
  pen.save();
  pen.beginPath();
  pen.rect(left, 0, width, height);
  pen.clip();
  pen.globalAlpha = 0.15;
  pen.fillStyle = colour;
  pen.fillRect(left, 0, width, height);
  pen.globalAlpha = 0.8;
  pen.strokeStyle = colour;
  pen.beginPath();
  for (let x = left - height; x < left + width; x += 7) {
    pen.moveTo(x, height);
    pen.lineTo(x + height, 0);
  }
  pen.stroke();
  pen.restore();
}
