// All cameras at once: each with its picture, its state and what is so there.

import { element } from "./watches.js";

const EVERY = 1000; // milliseconds between two pictures of a camera, or longer where all of them take longer

export class Grid {
  // `pictured` brings a place's picture as a data: URL; `onchoose` hears which camera was clicked.
  constructor(root, { pictured, onchoose }) {
    Object.assign(this, { root, pictured, onchoose, tiles: new Map() });
    this.go();
  }

  show(streams, chosen) {
    this.root.hidden = streams.length < 2;
    const names = new Set(streams.map((stream) => stream.name));
    for (const [name, tile] of this.tiles) {
      if (names.has(name)) continue;
      tile.remove();
      this.tiles.delete(name);
    }
    for (const stream of streams) {
      if (!this.tiles.has(stream.name)) {
        const tile = element("button", "", element("img"), element("span", "name", stream.name), element("small"), element("span", "so"));
        tile.type = "button";
        tile.querySelector("img").alt = "";
        tile.addEventListener("click", () => this.onchoose(stream.name));
        this.tiles.set(stream.name, tile);
        this.root.append(tile);
      }
      const tile = this.tiles.get(stream.name);
      tile.dataset.state = stream.frozen ? "stalled" : stream.state;
      tile.ariaPressed = String(stream.name === chosen);
      tile.querySelector("small").textContent = stream.reason || (stream.frozen ? "frozen" : `${stream.state} · ${stream.fps_seen.toFixed(1)} fps`);
    }
  }

  // Which watches have something: their names on the cameras where it is so.
  so(watches) {
    for (const [name, tile] of this.tiles) {
      const found = watches.filter((watch) => !watch.paused && watch.streams.some((at) => at.stream === name && at.state === true));
      tile.querySelector(".so").textContent = found.map((watch) => watch.name).join(", ");
    }
  }

  // One picture after the other, so that many cameras ask no more of the daemon at once than one.
  async go() {
    const began = performance.now();
    for (const [name, tile] of document.hidden || this.root.hidden ? [] : this.tiles) {
      try {
        tile.querySelector("img").src = await this.pictured(`v1/streams/${encodeURIComponent(name)}/frame.jpg`);
      } catch {
        tile.querySelector("img").removeAttribute("src"); // it has shown nothing yet, which its state says
      }
    }
    setTimeout(() => this.go(), Math.max(0, EVERY - (performance.now() - began)));
  }
}
