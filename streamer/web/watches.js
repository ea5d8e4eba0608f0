// What is watched for: what each watch believes of its streams, with its probability as a chart, and what may be done to it.

import { Chart } from "./chart.js";

const SNOOZE = 600; // seconds

export class Watches {
  // `root` holds the elements of index.html; `send` tells the daemon.
  constructor(root, { send }) {
    Object.assign(this, { root, send, cards: new Map() });
    this.find("#add-watch").addEventListener("submit", (event) => { event.preventDefault(); this.add(); });
  }

  find(id) {
    return this.root.querySelector(id);
  }

  add() {
    const value = (id) => this.find(id).value.trim();
    this.send({ type: "watch.add", watch: { name: value("#watch-name"), question: value("#watch-question"), when: value("#watch-when"), streams: [value("#watch-stream")] } });
  }

  added() {
    this.find("#add-watch").reset();
    this.find("#watch-more").open = false;
  }

  // The streams that one may choose from.
  offer(names, chosen) {
    const select = this.find("#watch-stream");
    if (names.join() === this.offered) return;
    this.offered = names.join();
    const kept = names.includes(select.value) ? select.value : chosen;
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === kept)));
  }

  show(watches) {
    this.find("#no-watches").hidden = watches.length > 0;
    const names = new Set(watches.map((watch) => watch.name));
    for (const [name, card] of this.cards) {
      if (names.has(name)) continue;
      card.row.remove();
      this.cards.delete(name);
    }
    for (const watch of watches) {
      if (!this.cards.has(watch.name)) {
        this.cards.set(watch.name, new Card(watch, this.send));
        this.find("#watch-list").append(this.cards.get(watch.name).row);
      }
      this.cards.get(watch.name).show(watch);
    }
  }
}

class Card {
  constructor(watch, send) {
    this.row = element("li");
    this.counts = element("small");
    this.streams = new Map();
    this.list = element("ul");
    this.pause = button("Pause", () => send({ type: "watch.update", name: watch.name, paused: !this.watch.paused }));
    this.snooze = button("Snooze", () => send({ type: "watch.update", name: watch.name, snooze: this.snoozed ? 0 : SNOOZE }));
    const remove = button("✕", () => send({ type: "watch.remove", name: watch.name }));
    remove.ariaLabel = `remove ${watch.name}`;
    const head = element("p", "head", element("strong", "", watch.name), remove);
    this.row.append(head, element("small", "", watch.question), this.list, element("p", "does", this.pause, this.snooze, this.counts));
  }

  show(watch) {
    this.watch = watch;
    this.snoozed = watch.streams.some((each) => each.snoozed_until);
    this.pause.textContent = watch.paused ? "Resume" : "Pause";
    this.snooze.textContent = this.snoozed ? "Wake" : "Snooze";
    this.snooze.title = this.snoozed ? `silent until ${new Date(watch.streams[0].snoozed_until * 1000).toLocaleTimeString()}` : "tell nothing for ten minutes";
    const judged = [watch.right && `${watch.right} right`, watch.false_alarms && `${watch.false_alarms} false`].filter(Boolean);
    this.counts.textContent = [`${watch.events} told`, ...judged].join(", ");
    for (const at of watch.streams) {
      if (!this.streams.has(at.stream)) {
        this.streams.set(at.stream, new Line(at.stream));
        this.list.append(this.streams.get(at.stream).row);
      }
      this.streams.get(at.stream).show(at, watch);
    }
  }
}

// One stream that a watch looks at.
class Line {
  constructor(stream) {
    this.belief = element("span", "belief");
    this.value = element("span", "value");
    this.why = element("small", "why");
    this.canvas = element("canvas");
    Object.assign(this.canvas, { width: 220, height: 28, ariaHidden: "true" });
    this.chart = new Chart(this.canvas);
    this.row = element("li", "", element("p", "", this.belief, element("span", "quiet", stream), this.value), this.canvas, this.why);
  }

  show(at, watch) {
    const sure = typeof at.seen === "number";
    const belief = watch.paused ? "paused" : at.state === null ? "–" : at.state === true ? "yes" : at.state === false ? "no" : String(at.state);
    this.row.dataset.belief = watch.paused ? "paused" : String(at.state);
    this.belief.textContent = belief;
    this.value.textContent = sure ? `${Math.round(at.seen * 100)} %` : "";
    this.value.title = "how likely yes is";
    this.canvas.hidden = !sure;
    if (sure && !watch.paused) this.chart.add(at.seen);
    this.why.textContent = at.trouble ?? [at.silent && `silent: ${at.silent}`, at.slowed && "looks slowed down"].filter(Boolean).join(", ");
    this.why.dataset.bad = String(Boolean(at.trouble));
  }
}

export function element(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

export function button(text, onclick) {
  const made = element("button", "plain", text);
  made.type = "button";
  made.addEventListener("click", onclick);
  return made;
}
