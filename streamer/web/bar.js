// The timeline's bar: draws how much happened when, and lets a moment be dragged along it by pointer and keyboard.

const STEPS = 60; // of a span, in which an arrow key moves the moment
const EDGE = 4; // pixels from either end within which a drag moves the span along
const CREEP = 0.02; // of a span, by which it moves then
const EVERY = 60; // milliseconds between two such moves
export const BUCKETS = 120;
export const KINDS = [ // what an entry's kind begins with, its colour, and what the legend calls it
  ["note", "--good", "notes"],
  ["question", "--accent", "questions"],
  ["watch", "--watch", "watches"],
  ["drops", "--warn", "drops"],
  ["gap", "--bad", "nothing seen"],
  ["", "--quiet", "other"],
];
const RECORDED = ["--text", "recorded"];

export class Bar {
  // `view` knows the span that is shown ({ from, to, moment, counts, width, gaps, recordings }) and does what is wanted of it.
  constructor(canvas, legend, view) {
    Object.assign(this, { canvas, legend, view, drag: null });
    canvas.addEventListener("pointerdown", (event) => this.grasp(event));
    canvas.addEventListener("pointermove", (event) => this.pull(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.release());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // The moment under a pointer, Unix seconds.
  at(x) {
    const { left } = this.canvas.getBoundingClientRect();
    const part = Math.max(0, Math.min(1, (x - left) / this.canvas.clientWidth));
    return this.view.from + part * (this.view.to - this.view.from);
  }

  grasp(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = { x: event.clientX, timer: setInterval(() => this.creep(), EVERY) };
    this.view.seek(this.at(event.clientX), false);
  }

  pull(event) {
    if (!this.drag) return;
    this.drag.x = event.clientX;
    this.view.seek(this.at(event.clientX), false);
  }

  // A drag that is held at an end goes on to what lies beyond it.
  creep() {
    const { left, right } = this.canvas.getBoundingClientRect();
    const way = this.drag.x < left + EDGE ? -1 : this.drag.x > right - EDGE ? 1 : 0;
    if (!way) return;
    this.view.move(way * CREEP);
    this.view.seek(this.at(this.drag.x), false);
  }

  release() {
    if (!this.drag) return;
    const { x, timer } = this.drag;
    clearInterval(timer);
    this.drag = null;
    this.view.seek(this.at(x), true);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { view } = this;
    const length = view.to - view.from;
    const by = (seconds) => view.seek((view.moment ?? view.to) + seconds, true);
    const step = length / (event.shiftKey ? STEPS / 10 : STEPS);
    const does = {
      ArrowLeft: () => by(-step), ArrowDown: () => by(-step), ArrowRight: () => by(step), ArrowUp: () => by(step),
      PageDown: () => by(-length / 4), PageUp: () => by(length / 4), Home: () => view.seek(view.from, true),
      End: () => view.leave(), Escape: () => view.leave(), Enter: () => view.play(), " ": () => view.play(),
      "+": () => view.nearer(1), "=": () => view.nearer(1), "-": () => view.nearer(-1),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  }

  wheel(event) {
    if (!event.ctrlKey && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return; // the page scrolls
    event.preventDefault();
    if (event.ctrlKey) this.view.nearer(-Math.sign(event.deltaY), this.at(event.clientX));
    else this.view.move(event.deltaX / this.canvas.clientWidth);
  }

  draw() {
    const { from, to, moment, counts, gaps, recordings, width: bucket } = this.view;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name);
    this.canvas.width = width * devicePixelRatio;
    this.canvas.height = height * devicePixelRatio;
    const pen = this.canvas.getContext("2d");
    pen.scale(devicePixelRatio, devicePixelRatio);
    const used = new Set();
    const x = (wall) => ((wall - from) / (to - from)) * width;
    const inside = (left, right) => right > 0 && left < width;
    for (const [begin, end] of gaps) {
      const [left, right] = [Math.max(0, x(begin)), Math.min(width, x(end))];
      if (!inside(left, right)) continue;
      used.add("nothing seen");
      hatch(pen, left, Math.max(2, right - left), height, colour("--bad"));
    }
    for (const [begin, end] of recordings) {
      if (!inside(x(begin), x(end))) continue;
      used.add(RECORDED[1]);
      pen.fillStyle = colour(RECORDED[0]);
      pen.globalAlpha = 0.5;
      pen.fillRect(Math.max(0, x(begin)), height - 3, Math.max(2, Math.min(width, x(end)) - Math.max(0, x(begin))), 3);
      pen.globalAlpha = 1;
    }
    const first = Math.floor(from / bucket);
    const last = Math.floor(to / bucket);
    const shown = [...counts].filter(([kind]) => kind !== "gap").map(([kind, each]) => [look(kind), each]);
    let most = 4;
    for (let i = first; i <= last; i++) most = Math.max(most, shown.reduce((sum, [, each]) => sum + (each.get(i) ?? 0), 0));
    const unit = (height - 10) / most;
    for (let i = first; i <= last; i++) {
      let low = height - 4;
      for (const [[, variable, name], each] of shown) {
        const count = each.get(i) ?? 0;
        if (!count) continue;
        used.add(name);
        pen.fillStyle = colour(variable);
        low -= count * unit;
        pen.fillRect(x(i * bucket), low, Math.max(2, x((i + 1) * bucket) - x(i * bucket) - 1), count * unit);
      }
    }
    if (moment !== null && moment >= from && moment <= to) {
      pen.fillStyle = colour("--text");
      pen.fillRect(x(moment) - 1, 0, 2, height);
      pen.beginPath();
      pen.arc(x(moment), 5, 5, 0, 2 * Math.PI);
      pen.fill();
    }
    this.explain(used);
  }

  explain(used) {
    const names = [...KINDS.map(([, variable, name]) => [variable, name]), RECORDED].filter(([, name]) => used.has(name));
    const told = names.map(([, name]) => name).join();
    if (told === this.told) return;
    this.told = told;
    this.legend.replaceChildren(...names.map(([variable, name]) => {
      const sign = document.createElement("span");
      sign.textContent = name;
      sign.style.setProperty("--kind", `var(${variable})`);
      return sign;
    }));
  }
}

export function look(kind) {
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
