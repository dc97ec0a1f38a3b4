/* What a page shows: one object, and the functions that draw it. */

export class Store {
  #draw = [];
  #isPending = false;

  constructor(state) { this.state = state; }

  /** Calls `draw(state)` now and after each change. */
  subscribe(draw) {
    this.#draw.push(draw);
    draw(this.state);
  }

  /** Replaces parts of the state. Changes of one task are drawn once. */
  set(change) {
    this.state = { ...this.state, ...change };
    if (this.#isPending) return;
    this.#isPending = true;
    queueMicrotask(() => {
      this.#isPending = false;
      for (const draw of this.#draw) draw(this.state);
    });
  }
}
