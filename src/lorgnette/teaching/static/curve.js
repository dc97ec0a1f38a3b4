/* The share of suggestions that were taken, over the answers: a line with its interval as a band. */

const create = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const format = (share) => `${Math.round(100 * share)} %`;

/** plot: the element with the svg, ticks and cross. readout: where the keys and the pointer show a value. */
export class Curve {
  #points = [];
  #index = null;

  constructor(plot, readout) {
    Object.assign(this, { plot, readout, svg: plot.querySelector("svg"), cross: plot.querySelector(".cross") });
    const ticks = plot.querySelectorAll(".ytick");
    ticks.forEach((tick, index) => { tick.style.bottom = `${50 * index}%`; });
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !this.#points.length) return;
      event.preventDefault();
      this.#show(Math.min(this.#points.length - 1, Math.max(0, (this.#index ?? this.#points.length - 1 - Math.min(step, 0)) + step)));
    });
    plot.addEventListener("pointermove", ({ clientX }) => {
      const { left, width } = plot.getBoundingClientRect();
      if (this.#points.length) this.#show(Math.round(Math.min(1, Math.max(0, (clientX - left) / width)) * (this.#points.length - 1)));
    });
    for (const name of ["pointerleave", "blur"]) plot.addEventListener(name, () => this.#hide());
  }

  /** points: [answers, share, low, high] after counted answers; of many answers not after each. */
  draw(points) {
    if (points.at(-1)?.[0] === this.#points.at(-1)?.[0] && this.svg.childElementCount) return;
    this.#points = points;
    this.#hide();
    const x = (index) => this.#percent(index) * 10, y = (share) => 1000 - 1000 * share;
    const join = (column) => points.map((point, index) => `${x(index).toFixed(1)} ${y(point[column]).toFixed(1)}`);
    const parts = [0, 0.5, 1].map((share) => create("path", { class: "grid", d: `M0 ${y(share)}H1000` }));
    if (points.length) {
      parts.push(create("path", { class: "band", d: `M${join(3).join("L")}L${join(2).reverse().join("L")}Z` }));
      parts.push(create("path", { class: "line color1", d: `M${join(1).join("L")}` }));
      parts.push(create("path", { class: "dots color1", d: `M${join(1).at(-1)}h0` }));
    }
    this.svg.replaceChildren(...parts);
    const last = points.at(-1);
    const said = last && `the share is ${format(last[1])} after ${last[0]} answers, at the start ${format(points[0][1])}`;
    this.plot.setAttribute("aria-label", said ? `Share of suggestions taken as they stand: ${said}. Arrow keys show values.` : "No answers counted yet");
  }

  #percent(index) {
    const [first, last] = [this.#points[0][0], this.#points.at(-1)[0]];
    return last > first ? (100 * (this.#points[index][0] - first)) / (last - first) : 100;
  }

  #show(index) {
    this.#index = index;
    const [answers, share, low, high] = this.#points[index];
    this.cross.hidden = false;
    this.cross.style.left = `${this.#percent(index)}%`;
    this.cross.firstElementChild.style.bottom = `${100 * share}%`;
    this.readout.textContent = `after ${answers}: ${format(share)}, with 90 % confidence ${format(low)} to ${format(high)}`;
  }

  #hide() {
    this.#index = null;
    this.cross.hidden = true;
    this.readout.textContent = "";
  }
}
