/* What the user has written about one image, and how: kept in this tab until it is an answer. */

const KEY = "lorgnette-teach";

const read = () => {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? {};
  } catch {
    return {};  // no storage, or another program's
  }
};
const write = (value) => {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(value));
  } catch { /* the server has the draft as well */ }
};

/** Seconds while the window was visible. */
const clock = { total: 0, since: document.hidden ? null : performance.now() };
export const countSeconds = () => clock.total + (clock.since === null ? 0 : (performance.now() - clock.since) / 1000);
document.addEventListener("visibilitychange", () => {
  clock.total = countSeconds();
  clock.since = document.hidden ? null : performance.now();
});

/** An image's text. state: of the suggestion. first: what was there at the beginning. text: what is there now. isTouched:
 *  the user has changed it. keys: key presses. isMend: it changes an earlier answer. */
export class Entry {
  #seconds = 0;
  #begin = null;

  constructor({ id, image, name, state = "ready", first, isMend = false }) {
    Object.assign(this, { id, image, name, state, first, text: first, isMend, isTouched: false, isStopped: false, keys: 0 });
  }

  get seconds() { return this.#seconds + (this.#begin === null ? 0 : countSeconds() - this.#begin); }

  /** It is shown, or not. */
  begin() { this.#begin ??= countSeconds(); }
  pause() { [this.#seconds, this.#begin] = [this.seconds, null]; }

  /** Keeps the words over a reload. */
  keep(run) {
    const { id, text, keys, seconds } = this;
    if (!this.isMend && this.isTouched) write({ ...read(), draft: { run, id, text, keys, seconds } });
  }

  /** Takes the words from before a reload, if `accepts` them. */
  restore(run, serverDraft, accepts) {
    const { draft } = read();
    if (draft?.run === run && draft.id === this.id && accepts(draft.text)) {
      [this.text, this.keys, this.#seconds] = [draft.text, draft.keys, draft.seconds];
    } else if (serverDraft !== null && accepts(serverDraft)) this.text = serverDraft;
    this.isTouched = this.text !== this.first;
  }
}

/** The answer that the server has not confirmed: { run, id, text, keys, seconds }, or null. */
export const readPending = () => read().pending ?? null;
export const keepPending = (pending) => write({ ...read(), pending });
export const forgetDraft = () => write({ pending: readPending() });
