// Shows the past in the place of the picture: the still of a moment, and the clip around it.

const BEFORE = 2; // seconds that a clip begins before its moment
const AFTER = 8; // and ends after it

export class Past {
  // `picture` and `video` take turns; `onshow` hears the moment of what a clip shows, Unix seconds.
  constructor({ picture, video, blank, timeline, onshow, onfault }) {
    Object.assign(this, { picture, video, blank, timeline, onshow, onfault, wanted: null, busy: false });
    video.addEventListener("timeupdate", () => !video.hidden && this.onshow(Math.min(this.begins + video.currentTime, this.ends)));
  }

  // Nothing of the past is shown any more.
  leave() {
    this.wanted = null;
    this.stop();
  }

  stop() {
    this.turn = {}; // whatever is on its way comes too late
    if (this.video.hidden) return;
    this.video.pause();
    this.video.hidden = true;
    URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
  }

  // The still of a moment, or of an entry; while one is on its way only the last one of those wanted since is waited for.
  async see(at, entry) {
    this.stop();
    this.wanted = { at, entry };
    if (this.busy) return;
    this.busy = true;
    for (let done = null; this.wanted && this.wanted !== done;) {
      done = this.wanted;
      try {
        const url = await this.still(done);
        if (this.wanted) this.show(url);
      } catch (error) {
        if (this.wanted === done) this.lack(error.message);
      }
    }
    this.busy = false;
  }

  async still({ at, entry }) {
    try {
      return await this.timeline.picture(`still?at=${at.toFixed(3)}`);
    } catch (error) {
      if (!entry?.still) throw error;
      return this.timeline.picture(`timeline/${entry.id}.jpg`).catch(() => { throw error; });
    }
  }

  show(url) {
    this.picture.src = url;
    this.picture.hidden = false;
    this.blank.hidden = true;
  }

  lack(text) {
    this.picture.hidden = true;
    this.blank.hidden = false;
    this.blank.textContent = text;
  }

  async play(at) {
    this.stop();
    const turn = this.turn = {};
    const to = Math.min(at + AFTER, this.timeline.now() - 1);
    const span = new URLSearchParams({ from: (at - BEFORE).toFixed(3), to: Math.max(to, at + 0.5).toFixed(3), codec: "h264" });
    try {
      const reply = await this.timeline.fetched(this.timeline.place(`clip?${span}`));
      const blob = await reply.blob();
      if (turn !== this.turn) return;
      [this.begins, this.ends] = ["Streamer-Begins", "Streamer-Ends"].map((name) => Number(reply.headers.get(name)));
      this.video.src = URL.createObjectURL(blob);
      this.video.hidden = false;
      await this.video.play();
    } catch (error) {
      if (turn === this.turn && error.name !== "AbortError") this.onfault(error.message);
    }
  }
}
