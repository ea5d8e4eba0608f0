import { Connection } from "./connection.js";
import { Chart } from "./chart.js";
import { Past } from "./past.js";
import { Timeline, clock } from "./timeline.js";
import { Events } from "./events.js";
import { Grid } from "./grid.js";
import { Recordings, span } from "./recordings.js";
import { Watches, button } from "./watches.js";
import { publish } from "./webcam.js";

const at = (id) => document.getElementById(id);
const charts = { seen: new Chart(at("seen-chart")), lag: new Chart(at("lag-chart")), dropped: new Chart(at("dropped-chart")) };
const state = { streams: [], chosen: null, answers: new Map(), drops: new Map(), camera: null, frameAsked: 0, moment: null, recording: null };
const connection = new Connection();
const timeline = new Timeline(at("timeline"), {
  fetched: (place) => connection.fetched(place), pictured: (place) => connection.pictured(place), send: (event) => connection.send(event),
  onmoment: visit, onplay: play, onspan: (span) => { past.leave(); dwell(span); }, onfault: notice,
});
const past = new Past({ picture: at("picture"), video: at("clip-shown"), blank: at("blank"), timeline, onshow: (moment) => dwell({ at: moment }), onfault: notice });
const send = (event) => { notice(""); connection.send(event); };
const watches = new Watches(at("watches"), { send });
const events = new Events(at("events"), at("player"), { fetched: (place) => connection.fetched(place), send, onfault: notice });
const recordings = new Recordings(at("recordings"), {
  fetched: (place, method) => connection.fetched(place, method), headers: () => connection.headers(), onchoose: consult, onfault: notice,
});
const grid = new Grid(at("grid"), { pictured: (place) => connection.pictured(place), onchoose: choose });

const PICTURE_EVERY = 200; // milliseconds: the page shows five pictures a second of those the model saw
const LIST_EVERY = 1000;
const HEALTH_EVERY = 2000;
const ANSWER_TIMEOUT = 3000;

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function told(text) {
  const line = document.createElement("li");
  line.className = "told";
  line.textContent = text;
  append(line);
}

function append(line) {
  const log = at("log");
  const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.append(line);
  while (log.children.length > 200) log.firstChild.remove();
  if (low) log.scrollTop = log.scrollHeight;
}

// The newest words stay in sight. Once a picture of the screen: a layout of all that was said for every word holds up the page.
let following = 0;
function follow() {
  following ||= requestAnimationFrame(() => {
    following = 0;
    at("log").scrollTop = at("log").scrollHeight;
  });
}

// What is asked about from now on: a moment of the past { at }, a span { from, to } (Unix seconds), or null, what is seen now.
function dwell(moment) {
  state.moment = moment;
  if (state.recording !== null) { state.recording = null; recordings.choose(null); }
  at("then").hidden = moment === null;
  at("play").hidden = moment?.at === undefined;
  at("moment").textContent = moment === null ? "" : about(moment);
  at("question").placeholder = moment === null ? "What do you see?" : "What did you see then?";
  if (moment?.at !== undefined) at("caption").textContent = `${state.chosen} · ${clock(moment.at)}`;
  timeline.mark(moment?.at ?? null);
}

// A recording is asked about from now on, or what is seen now again.
function consult(recording) {
  leave();
  if (recording === null) return;
  state.recording = recording.name;
  recordings.choose(recording.name);
  at("then").hidden = false;
  at("play").hidden = true;
  at("moment").textContent = `about ${recording.name}`;
  at("question").placeholder = "What happened in it?";
  at("question").focus();
}

function about(moment) {
  return moment.at !== undefined ? `about ${clock(moment.at)}` : `about ${clock(moment.from)} – ${clock(moment.to)}`;
}

// Tells which model runs, and why something can't be kept.
async function health() {
  let facts;
  try {
    facts = await (await fetch("healthz")).json();
  } catch {
    return;
  }
  at("storage").hidden = !facts.storage;
  at("storage").textContent = facts.storage ? `Not all can be kept now; watching and answering go on. ${facts.storage}` : "";
  if (facts.model) at("model").textContent = facts.model.trained ? facts.model.name : `${facts.model.name} – ${facts.model.weights}`;
}

function blank(text) {
  at("picture").hidden = true;
  at("blank").hidden = false;
  at("blank").textContent = text;
}

function visit(wanted) {
  if (!wanted) return leave();
  dwell({ at: wanted.at });
  past.see(wanted.at, wanted.entry);
}

function play(moment) {
  notice("");
  past.play(moment);
}

function leave() {
  const seen = state.moment?.at !== undefined;
  past.leave();
  dwell(null);
  if (seen) blank("no picture yet");
}

function show(url) {
  at("picture").src = url;
  at("picture").hidden = false;
  at("blank").hidden = true;
}

function choose(name) {
  if (state.chosen === name) return;
  state.chosen = name;
  past.leave();
  dwell(null);
  Object.values(charts).forEach((chart) => chart.clear());
  blank("no picture yet");
  at("caption").textContent = name ?? "";
  timeline.choose(name);
  if (name) connection.send({ type: "session.update", session: { type: "realtime", stream: name } });
  list();
}

function list() {
  const rows = state.streams.map((stream) => {
    const row = document.createElement("li");
    const pick = document.createElement("button");
    pick.type = "button";
    pick.className = "choose";
    pick.dataset.state = stream.state;
    pick.setAttribute("aria-pressed", String(stream.name === state.chosen));
    pick.append(stream.name);
    const detail = document.createElement("small");
    detail.textContent = stream.reason || [stream.state, stream.engine, stream.source].filter(Boolean).join(" · ");
    pick.append(detail);
    pick.addEventListener("click", () => choose(stream.name));
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "plain";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `remove ${stream.name}`);
    remove.addEventListener("click", () => connection.send({ type: "stream.detach", stream: stream.name }));
    row.append(pick, remove);
    return row;
  });
  const focused = [...at("list").querySelectorAll("button")].indexOf(document.activeElement);
  at("list").replaceChildren(...rows);
  if (focused >= 0) at("list").querySelectorAll("button")[focused]?.focus();
}

function figures() {
  const stream = state.streams.find((each) => each.name === state.chosen);
  if (!stream) return;
  const total = Object.values(stream.drops).reduce((sum, count) => sum + count, 0);
  const before = state.drops.get(stream.name) ?? total;
  state.drops.set(stream.name, total);
  const lag = (stream.lag_s ?? 0) * 1000;
  at("seen").textContent = `${stream.fps_seen.toFixed(1)} of ${stream.fps_in.toFixed(1)} fps`;
  at("lag").textContent = `${lag.toFixed(0)} ms`;
  at("dropped").textContent = `${total} in all`;
  charts.seen.add(stream.fps_seen);
  charts.lag.add(lag);
  charts.dropped.add(Math.max(0, total - before));
}

const handlers = {
  "stream.listed": (event) => {
    state.streams = event.streams;
    if (!state.streams.some((each) => each.name === state.chosen)) choose(state.streams[0]?.name ?? null);
    list();
    figures();
    watches.offer(state.streams.map((each) => each.name), state.chosen);
    grid.show(state.streams, state.chosen);
  },
  "watch.listed": (event) => { watches.show(event.watches); grid.so(event.watches); },
  "watch.added": () => { watches.added(); connection.send({ type: "watch.list" }); },
  "watch.updated": () => connection.send({ type: "watch.list" }),
  "watch.removed": () => connection.send({ type: "watch.list" }),
  "watch.judged": (event) => events.judged(event),
  "watch.missed": () => events.load(),
  "stream.attached": (event) => { told(`${event.stream?.name ?? event.stream ?? event.name ?? "stream"} added`); connection.send({ type: "stream.list" }); },
  "stream.detached": () => { told("stream removed"); connection.send({ type: "stream.list" }); },
  "stream.frame": (event) => {
    state.frameAsked = 0;
    if (state.moment?.at !== undefined || (event.stream !== undefined && event.stream !== state.chosen)) return;
    show(event.image_url);
    at("caption").textContent = `${state.chosen} · ${event.time.toFixed(1)} s`;
  },
  "stream.status": (event) => { if (event.state) told(`${event.stream}: ${event.state}${event.reason ? ` – ${event.reason}` : ""}`); },
  "stream.resumed": (event) => { if (event.engine) told(`${event.stream} went to engine ${event.engine}, unseen for ${(event.unseen_s ?? 0).toFixed(1)} s`); },
  "stream.reset": (event) => told(`${event.stream} was reset: ${event.reason}`),
  "response.created": (event) => {
    const line = document.createElement("li");
    line.className = "answer";
    state.answers.set(event.response.id, { line, began: performance.now(), first: null });
    append(line);
    busy();
  },
  "response.replaying": (event) => {
    const answer = state.answers.get(event.response_id);
    const what = event.moment?.recording ? "loading it" : "showing it again";
    if (answer) answer.line.dataset.replaying = `${what}: ${Math.floor((100 * event.shown) / event.of)} %`;
  },
  "response.output_text.delta": (event) => {
    const answer = state.answers.get(event.response_id);
    if (!answer) return;
    answer.first ??= performance.now() - answer.began;
    delete answer.line.dataset.replaying;
    answer.line.append(event.delta);
    follow();
  },
  "response.done": (event) => {
    const answer = state.answers.get(event.response.id);
    if (!answer) return;
    state.answers.delete(event.response.id);
    const detail = document.createElement("small");
    const first = answer.first === null ? "" : ` · first word after ${answer.first.toFixed(0)} ms`;
    delete answer.line.dataset.replaying;
    const { moment } = event.response;
    detail.textContent = `${event.response.status}${first}${spoken(moment)}`;
    answer.line.append(detail, ...cited(moment));
    follow();
    busy();
  },
  "error": (event) => { state.frameAsked = 0; if (event.error.code !== "no_frame") notice(event.error.message); },
};

// Which moment or span of the past an answer speaks of, and how that was reached.
function spoken(moment) {
  if (!moment) return "";
  if (moment.recording) return ` · ${moment.recording}`;
  const reached = clock(Date.parse(moment.reached) / 1000);
  if (moment.frames !== undefined) return ` · ${clock(Date.parse(moment.from) / 1000)} – ${reached}, ${moment.how}, ${moment.frames} frames`;
  return ` · ${reached}, ${moment.how === "exact" ? moment.how : `${moment.how}, ${moment.before_s.toFixed(1)} s before`}`;
}

// The moments of a recording that an answer rests on most, each of which can be played.
function cited(moment) {
  return (moment?.moments ?? []).map((each) => {
    const times = `${span(each.from)}–${span(each.to)}`;
    const made = button(`▶ ${times}`, () => events.open(each.clip, true, `${moment.recording} · ${times}`));
    made.classList.add("cited");
    return made;
  });
}

function look() {
  connection.send({ type: "stream.list" });
  if (!document.hidden) connection.send({ type: "watch.list" });
}

function busy() {
  at("stop").hidden = state.answers.size === 0;
}

for (const type of ["watch.started", "watch.ended", "watch.changed", "watch.evidence", "watch.described"]) handlers[type] = (event) => events.hear(event);
connection.onevent = (event) => timeline.heard(event) || handlers[event.type]?.(event);
connection.onstate = (name, detail) => {
  at("connection").dataset.state = name;
  at("connection").textContent = detail;
  at("send").disabled = name !== "open";
  state.frameAsked = 0;
  if (name !== "open") {
    for (const { line } of state.answers.values()) line.append(" (connection lost)");
    state.answers.clear();
    busy();
    return;
  }
  notice("");
  const chosen = state.chosen;
  state.chosen = null;
  look();
  connection.send({ type: "watch.subscribe" });
  events.load();
  recordings.load();
  if (chosen) choose(chosen);
  health();
};
connection.ondoor = () => at("door").showModal();

at("door").addEventListener("close", () => { connection.token = at("token").value; connection.open(); });
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("question").value.trim();
  if (!text) return;
  notice("");
  const line = document.createElement("li");
  line.className = "question";
  line.textContent = text;
  if (state.moment !== null || state.recording !== null) {
    const detail = document.createElement("small");
    detail.textContent = state.recording === null ? about(state.moment) : `about ${state.recording}`;
    line.append(detail);
  }
  append(line);
  connection.send({
    type: "response.create",
    response: {
      conversation: "none",
      ...(state.recording === null ? { stream: state.chosen ?? undefined } : { recording: state.recording }),
      ...Object.fromEntries(Object.entries(state.moment ?? {}).map(([name, moment]) => [name, new Date(moment * 1000).toISOString()])),
      input: [{ type: "message", role: "user", content: [{ type: "input_text", text }] }],
    },
  });
  at("question").value = "";
});
at("stop").addEventListener("click", () => {
  for (const id of state.answers.keys()) connection.send({ type: "response.cancel", response_id: id });
});
at("now").addEventListener("click", leave);
for (const id of ["play", "picture"]) at(id).addEventListener("click", () => timeline.play()); // of what is seen now there is nothing to play
at("attach").addEventListener("submit", (event) => {
  event.preventDefault();
  notice("");
  connection.send({ type: "stream.attach", stream: at("name").value, source: at("source").value });
  event.target.reset();
});
at("publish").addEventListener("click", async () => {
  notice("");
  if (state.camera) {
    await state.camera.stop();
    state.camera = null;
    at("publish").textContent = "Publish my webcam";
    return;
  }
  try {
    state.camera = await publish(connection, "webcam", () => { state.camera = null; at("publish").textContent = "Publish my webcam"; });
    at("publish").textContent = "Stop publishing";
  } catch (error) {
    notice(`The webcam can't be published: ${error.message}`);
  }
});
at("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
});

setInterval(() => {
  if (!connection.isOpen || !state.chosen || state.moment?.at !== undefined || document.hidden) return;
  if (state.frameAsked && performance.now() - state.frameAsked < ANSWER_TIMEOUT) return;
  state.frameAsked = performance.now();
  connection.send({ type: "stream.frame", stream: state.chosen });
}, PICTURE_EVERY);
setInterval(look, LIST_EVERY);
setInterval(health, HEALTH_EVERY);
connection.open();
