// What watches told, the newest first: the picture that decided, whether that was right, and the recording around it.

import { clock } from "./timeline.js";
import { button, element } from "./watches.js";

const SHOWN = 50;
const WHOLE = 60; // seconds after which nobody waits any more to be told that a clip is whole

export class Events {
  // `root` holds the elements of index.html; `fetched` asks the daemon with its token; `send` tells it.
  constructor(root, player, { fetched, send, onfault }) {
    Object.assign(this, { root, player, fetched, send, onfault, rows: new Map(), notified: null });
    this.bell = root.querySelector("#notify");
    this.bell.hidden = !("Notification" in window && window.isSecureContext);
    this.bell.addEventListener("click", () => this.allow());
    this.ring(globalThis.Notification?.permission === "granted" && localStorage.getItem("notify") === "yes");
    player.querySelector("button").addEventListener("click", () => player.close());
    player.addEventListener("close", () => player.querySelector("video").removeAttribute("src"));
    player.querySelector("video").addEventListener("error", ({ target }) => target.getAttribute("src") && this.explain(target.getAttribute("src")));
  }

  // Takes what was told before; what is heard meanwhile stays.
  async load() {
    try {
      const { events } = await (await this.fetched(`v1/watches/events?limit=${2 * SHOWN}`)).json();
      for (const event of events) this.hear(event, false);
    } catch (error) {
      this.onfault(error.message);
    }
  }

  // An event is told, now or before.
  hear(event, news = true) {
    if (event.about) return this.rows.get(event.about)?.follow(event);
    if (this.rows.has(event.id)) return;
    const row = new Row(event, this);
    this.rows.set(event.id, row);
    const later = [...this.rows.keys()].filter((id) => id > event.id).sort()[0];
    const list = this.root.querySelector("#event-list");
    list.insertBefore(row.row, later ? this.rows.get(later).row.nextSibling : list.firstChild);
    for (const id of [...this.rows.keys()].sort().slice(0, -SHOWN)) {
      this.rows.get(id).row.remove();
      this.rows.delete(id);
    }
    this.root.querySelector("#no-events").hidden = true;
    if (news && this.notified) this.notify(event, row.said);
  }

  judged({ id, feedback }) {
    this.rows.get(id)?.judge(feedback);
  }

  show(event, video) {
    this.open(video ? event.clip : event.still, video, `${event.watch} · ${event.stream} · ${clock(event.captured_at)}`, event.frame);
  }

  // A picture or a clip behind a link, what it is, and where the whole of a picture is.
  open(link, video, title, larger = null) {
    const [image, film, whole] = ["img", "video", "a"].map((name) => this.player.querySelector(name));
    image.hidden = video;
    film.hidden = !video;
    (video ? film : image).src = here(link);
    whole.hidden = video || !larger;
    if (larger) whole.href = here(larger);
    this.player.querySelector("p").textContent = title;
    this.player.showModal();
  }

  // A video's own error does not say why; the daemon does.
  async explain(place) {
    try {
      await this.fetched(place);
      this.onfault("This browser can't play the clip.");
    } catch (error) {
      this.onfault(error.message);
    }
    this.player.close();
  }

  async allow() {
    const on = !this.notified && await Notification.requestPermission() === "granted";
    if (!on && !this.notified) this.onfault("This browser does not allow notifications of this page.");
    localStorage.setItem("notify", on ? "yes" : "no");
    this.ring(on);
  }

  ring(on) {
    this.notified = on;
    this.bell.setAttribute("aria-pressed", String(on));
  }

  notify(event, said) {
    try {
      const about = new Notification(`${event.watch}: ${said}`, { body: `${event.question}\n${event.stream}`, tag: event.id, icon: event.still ? here(event.still) : "icon.svg" });
      about.onclick = () => { window.focus(); this.rows.get(event.id)?.row.scrollIntoView(); };
    } catch { // browsers of phones have them for service workers alone
      this.ring(false);
      this.onfault("This browser shows no notifications of a page.");
    }
  }
}

class Row {
  constructor(event, events) {
    this.event = event;
    const shown = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
    this.said = event.type === "watch.changed" ? `${event.before === null ? "" : `${shown(event.before)} → `}${shown(event.after)}` : event.type === "watch.started" ? "yes" : "no longer";
    const still = button("", () => events.show(event, false));
    still.className = "still";
    still.ariaLabel = `the picture that decided, ${event.watch}`;
    if (event.still) {
      const image = element("img");
      Object.assign(image, { src: here(event.still), alt: "" });
      still.append(image);
    } else {
      still.disabled = true;
    }
    const sure = event.probability === null ? "" : ` · ${Math.round(event.probability * 100)} %`;
    this.note = element("small", "note");
    this.verdicts = ["right", "false_alarm"].map((verdict) => {
      const made = button(verdict === "right" ? "Right" : "False alarm", () => {
        const taken = made.ariaPressed === "true";
        events.send({ type: "watch.feedback", id: event.id, feedback: taken ? null : verdict });
      });
      made.dataset.verdict = verdict;
      return made;
    });
    this.clip = button("Play clip", () => events.show(event, true));
    this.clip.hidden = !event.clip;
    this.ready(Date.now() / 1000 - event.captured_at > WHOLE);
    this.row = element("li", "", still, element("div", "",
      element("p", "head", element("strong", "", event.watch), element("span", "", this.said)),
      element("small", "", `${clock(event.captured_at)} · ${event.stream}${sure}`), this.note,
      element("p", "does", ...this.verdicts, this.clip)));
    this.row.dataset.event = event.id;
    this.row.dataset.severity = event.severity;
    this.row.title = event.question;
    this.judge(event.feedback ?? null);
  }

  judge(feedback) {
    for (const verdict of this.verdicts) verdict.ariaPressed = String(verdict.dataset.verdict === feedback);
  }

  follow(event) {
    if (event.description) this.note.textContent = event.description;
    if (event.type === "watch.evidence") this.ready(true);
  }

  ready(whole) {
    this.clip.disabled = !whole;
    this.clip.title = whole ? "" : "is being recorded";
  }
}

// A link as this page reaches it: links begin with the address that others know the daemon by.
function here(link) {
  return link.slice(link.search(/\/v1\/(watches\/events|streams|recordings)\//) + 1);
}
