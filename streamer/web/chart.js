// A small line chart of the last minute, one value a second.

const KEPT = 60;

export class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.values = [];
  }

  add(value) {
    this.values.push(value);
    if (this.values.length > KEPT) this.values.shift();
    this.draw();
  }

  clear() {
    this.values = [];
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas;
    const pen = this.canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    const most = Math.max(1, ...this.values);
    pen.strokeStyle = getComputedStyle(this.canvas).color;
    pen.lineWidth = 2;
    pen.beginPath();
    this.values.forEach((value, i) => {
      const x = width - (this.values.length - 1 - i) * (width / (KEPT - 1));
      const y = height - 2 - (value / most) * (height - 4);
      if (i) pen.lineTo(x, y); else pen.moveTo(x, y);
    });
    pen.stroke();
  }
}
