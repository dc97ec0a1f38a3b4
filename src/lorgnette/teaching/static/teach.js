/* The page on which a person corrects suggestions: what it does. page_view.js draws it, the server has the state. */

import { Entry, forgetDraft, keepPending, readPending } from "./entry.js";
import { findLabel, hasUntuned, PageView } from "./page_view.js";
import { Gone, post, Refusal, StateFeed } from "./requests.js";
import { Store } from "./store.js";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const [field, labels, large] = ["field", "labels", "large"].map(byId);
const hasMouse = matchMedia("(pointer: fine)").matches;
const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
const tab = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const DRAFT_MILLISECONDS = 500;

/* view: the server's state, null before the first. entry: what the field is about. lost: why the server is not reached.
 * sending: the answer on its way, with the version of the state that has it. problem: about what the user just did.
 * isHeld: the user holds the keys, or the button, that show what the untuned model says. */
const store = new Store({ view: null, entry: null, lost: null, sending: null, problem: "", goesOn: false, isHeld: false, data, isMac });

// ---- The state of the server

let own = null;  // the entry of the current image; a mend may stand before it

const receive = (view) => {
  const { sending, view: before } = store.state;
  const isKnown = sending && view.version >= sending.version;
  store.set({ view, lost: view.run === data.run ? null : { kind: "other_run" }, ...(isKnown && { sending: null }) });
  if (view.run !== data.run) return;
  if (view.phase !== before?.phase) store.set({ goesOn: view.phase === "finished" && before !== null && Boolean(own?.isTouched) });
  const { current } = view;
  if (!current) {
    if (store.state.entry === own) show(null);
    own = null;
  } else if (own?.id !== current.id) meet(current, view);
  else update(current, view);
  preload(view);
};

/** What stands there at the beginning: the suggestion, or the label that it means. */
const findFirst = ({ text }, { labels }) => (labels.length ? findLabel(labels, text) : text ?? "");

const meet = (current, view) => {
  const isOn = store.state.entry === own || !store.state.entry;
  own?.pause();
  own = new Entry({ ...current, first: findFirst(current, view) });
  own.restore(data.run, current.draft, (text) => !view.labels.length || view.labels.includes(text));
  if (isOn) show(own);
};

/** A suggestion that grows. Words that the user has touched stay. */
const update = (current, view) => {
  const first = findFirst(current, view);
  if (first === own.first && current.state === own.state) return;
  Object.assign(own, { first, state: current.state });
  if (own.isTouched) return;
  own.text = first;
  if (store.state.entry === own) fill();
};

const show = (entry) => {
  store.state.entry?.pause();
  entry?.begin();
  store.set({ entry, problem: "", isHeld: false });
  if (entry) fill();
};

/** Puts the entry's text into the field. An untuned suggestion is selected: typing replaces it. */
const fill = () => {
  const { entry, view } = store.state;
  if (view.labels.length) page.choose(entry.text);
  else field.value = entry.text;
  const isFirst = !entry.isMend && !entry.isTouched && view.current.round === 0 && view.current.state === "ready";
  field.setSelectionRange(isFirst ? 0 : entry.text.length, entry.text.length);
  field.scrollTop = 0;
  queueMicrotask(() => focusField());  // once it is drawn
};

const focusField = (isAsked = false) => {
  const { activeElement } = document, isAtWork = activeElement === document.body || activeElement.closest("#form, #history");
  if (large.open || !(isAtWork || isAsked) || !(hasMouse || activeElement === field)) return;  // a phone would open its keyboard
  (store.state.view.labels.length ? labels.querySelector(":checked") ?? labels.querySelector("input") : field)?.focus({ preventScroll: true });
};

const preloaded = new Image();
const preload = (view) => {
  if (view.next_image === null) return;
  const address = page.getAddress(view.next_image);
  if (preloaded.getAttribute("src") !== address) preloaded.src = address;
};

const lose = (error) => {
  const { lost, sending } = store.state;
  const kind = error instanceof Gone ? "gone" : error.status === 401 ? "restarted" : error.code === "other_run" ? "other_run" : "failed";
  store.set({ lost: lost?.kind === kind ? lost : { kind, text: error.message }, ...(sending && { sending: null }) });
};

/** The newest page of a run has it. Another one may have come while the server was gone. */
const connect = async () => {
  const { view, lost } = store.state;
  const isAnew = view?.tab === "own" && lost?.kind === "gone" && (await feed.read()).start !== view.start;
  if (!view || isAnew) await post("claim", { tab, run: data.run });
  await sendPending();
};
const sendPending = async () => {
  const pending = readPending();
  if (pending?.run === data.run) await deliver(pending);
};
const feed = new StateFeed({ tab, connect, onState: receive, onLost: lose });

// ---- What the user does

/** Whether the server did it. Says what it refused, unless the user did not ask for it. */
const act = async (action, body = {}, isAsked = true) => {
  try {
    return await post(action, { tab, run: data.run, ...body });
  } catch (error) {
    if (error instanceof Gone || error.status === 401) {
      lose(error);
      feed.hurry();
    } else if (!(error instanceof Refusal)) throw error;
    else if (isAsked && error.code !== "other_tab") store.set({ problem: page.explain(error.message) });
    return null;
  }
};

/** Sends an answer; it stays pending until the server confirms it or says that it is of no use. */
const deliver = async (pending) => {
  const { run, ...answer } = pending;
  try {
    const { version } = await post("answer", { tab, run, ...answer });
    keepPending(null);
    forgetDraft();
    return version;
  } catch (error) {
    if (!(error instanceof Refusal) || error.status === 401) throw error;
    if (error.code === "other_tab") return null;  // it is sent once the user takes the run over
    keepPending(null);
    const isShown = own?.id === answer.id;
    store.set({ problem: page.explain(error.message) + (isShown ? "" : ` Your words were: ${answer.text}`) });
    return null;
  }
};

const isWaiting = () => ["waiting", "streaming"].includes(store.state.view?.current?.state) && store.state.entry === own && !own?.isStopped;
const isOther = () => store.state.view?.tab === "other";

const take = async () => {
  const { entry, view, sending } = store.state;
  if (!entry || sending || isOther()) return;
  if (isWaiting()) return stop();
  if (!entry.isMend && view.current.state === "broken") return;
  const text = entry.text.trim();
  if (!text) return store.set({ problem: view.labels.length ? "Choose one, or skip the image." : "Write something first, or skip the image." });
  if (entry.isMend) return mend(entry, text);
  const pending = { run: data.run, id: entry.id, text, keys: entry.keys, seconds: Math.round(1000 * entry.seconds) / 1000 };
  keepPending(pending);
  await leave(entry, async () => {
    try {
      return await deliver(pending);
    } catch (error) {
      lose(error);
      feed.hurry();
      return null;
    }
  });
};

/** Locks the field while `send` is on its way, and until the state is there whose version it returns; null: it failed. */
const leave = async (entry, send) => {
  cancelDraft();
  store.set({ sending: { id: entry.id, version: Infinity }, problem: "" });
  page.lock();
  const version = await send();
  const isThere = version === null || store.state.view.version >= version;
  store.set({ sending: isThere ? null : { id: entry.id, version } });
};

const mend = async (entry, text) => {
  if (text === entry.first || await act("mend", { id: entry.id, text })) leaveMend();
};

/** An earlier answer: its words in the field, until they are saved. */
const openMend = ({ id, image, name, text }) => {
  if (isOther() || store.state.sending) return;
  show(new Entry({ id, image, name, first: text, isMend: true }));
};
const leaveMend = () => show(own);

/** by: 1 is an earlier answer, −1 a later one. */
const turn = (by) => {
  const { entry, view } = store.state;
  const history = view?.history ?? [], position = entry?.isMend ? history.findIndex(({ id }) => id === entry.id) : -1;
  if (position + by < 0) return entry?.isMend && leaveMend();
  if (position + by < history.length) openMend(history[position + by]);
};

const skip = async () => {
  const { entry, sending } = store.state;
  if (!entry || entry.isMend || sending || isOther()) return;
  await leave(entry, async () => {
    const done = await act("skip", { id: entry.id });
    if (done) forgetDraft();
    return done?.version ?? null;
  });
};
const undo = () => {
  if (store.state.entry?.isMend) return leaveMend();
  if (!byId("undo").disabled && !store.state.sending && !isOther()) act("undo");
};
const train = () => { if (!byId("train").disabled) act("train"); };
const finish = () => act("finish");
const claim = async () => { if (await act("claim")) await sendPending().catch(lose); };

/** What the untuned model says, until a key or the pointer is released. */
const hold = async () => {
  const { view, entry, isHeld } = store.state;
  if (isHeld || isOther() || !hasUntuned(store.state)) return;
  store.set({ isHeld: true, problem: "" });
  if (view.current.untuned === null && !await act("untuned", { id: entry.id })) release();
};
const release = () => { if (store.state.isHeld) store.set({ isHeld: false }); };

/** The suggestion grows no further, and may be changed. */
const stop = () => {
  own.isStopped = true;
  act("stop", { id: own.id });
  page.unlock();
};

// ---- The field

let draftTimer = null;
const cancelDraft = () => { clearTimeout(draftTimer); draftTimer = null; };
const keepDraft = () => {
  const { entry } = store.state;
  if (entry.isMend) return;
  if (readPending()?.id === entry.id) keepPending(null);  // what is written now counts
  entry.keep(data.run);
  cancelDraft();
  draftTimer = setTimeout(() => {
    if (!store.state.lost && !isOther()) act("draft", { id: entry.id, text: entry.text }, false);
  }, DRAFT_MILLISECONDS);
};
addEventListener("pagehide", () => own?.keep(data.run));

const write = (text) => {
  const { entry } = store.state;
  Object.assign(entry, { text, isTouched: true });
  keepDraft();
  store.set({ problem: "" });
};
field.addEventListener("input", () => write(field.value));
labels.addEventListener("change", ({ target }) => write(target.value));

/** Replaces the text so that the field's own undo knows it. */
const replaceText = (text) => {
  if (store.state.view.labels.length) {
    page.choose(text);
    return write(text);
  }
  field.select();
  if (!document.execCommand(text ? "insertText" : "delete", false, text)) {
    field.value = text;
    write(text);
  }
};

/** The suggestion again; if it stands there already, no text. */
const revert = () => {
  const { entry, sending } = store.state;
  if (!entry || sending || isOther()) return;
  if (isWaiting()) return stop();
  if (entry.text !== entry.first) replaceText(entry.first);
  else if (entry.isMend) leaveMend();
  else if (entry.text) replaceText("");
};

const isModifier = (key) => ["Shift", "Control", "Alt", "Meta", "AltGraph", "CapsLock", "Fn"].includes(key);
const isComposing = (event) => event.isComposing || event.keyCode === 229;  // an input method takes the key

/** What a key does, and whether it counts as writing; null if it is the field's. */
const findCommand = (event) => {
  const { key, code, altKey, ctrlKey, metaKey, shiftKey } = event, { view, entry, sending } = store.state;
  const isPlain = !altKey && !ctrlKey && !metaKey;
  const plain = { Enter: shiftKey ? null : take, Escape: revert, PageUp: () => turn(1), PageDown: () => turn(-1) }[key];
  if (isPlain && plain) return { run: plain, writes: plain === revert };
  // On a Mac Alt writes letters, and so does AltGr elsewhere.
  const isChord = isMac ? ctrlKey && !altKey && !metaKey : altKey && !ctrlKey && !metaKey && !event.getModifierState("AltGraph");
  if (isChord && code === "KeyS") return { run: skip };
  if (isChord && code === "KeyT") return { run: train };
  if (isChord && code === "KeyU") return { run: hold };
  const isUndo = (isMac ? metaKey : ctrlKey) && !shiftKey && !altKey && key.toLowerCase() === "z";
  if (isUndo && (!entry?.isTouched || view.labels.length)) return { run: undo };
  const label = isPlain && /^[1-9]$/.test(key) ? view.labels[Number(key) - 1] : undefined;
  if (label === undefined || !entry || sending || isOther()) return null;
  return { run: () => { page.choose(label); write(label); }, writes: true };
};

const countKey = (event) => {
  const { entry, sending } = store.state;
  if (entry && !sending && !event.repeat && !isModifier(event.key) && event.key !== "Tab") entry.keys++;
};

addEventListener("keydown", (event) => {
  const { target } = event, isField = target === field || labels.contains(target), isBody = target === document.body;
  if (large.open || !(isField || isBody) || !store.state.view) return;
  const command = isComposing(event) ? null : findCommand(event);
  if (!command || command.writes) countKey(event);
  if (command) {
    event.preventDefault();
    if (!event.repeat) command.run();
    return;
  }
  const isText = !event.ctrlKey && !event.metaKey && !isModifier(event.key) && event.key !== "Tab";
  if (isText && isWaiting() && !isOther()) stop();  // the key goes on into the field
  if (isText && isBody && event.key.length === 1) focusField();
});
field.addEventListener("pointerdown", () => { if (isWaiting() && !isOther() && !hasMouse) stop(); });

const untuned = byId("untuned");
untuned.addEventListener("pointerdown", ({ button }) => { if (!button) hold(); });
untuned.addEventListener("keydown", (event) => {
  if (![" ", "Enter"].includes(event.key)) return;
  event.preventDefault();
  if (!event.repeat) hold();
});
for (const type of ["mousedown", "contextmenu"]) untuned.addEventListener(type, (event) => event.preventDefault());  // the field keeps the focus
for (const type of ["keyup", "pointerup", "pointercancel", "blur"]) addEventListener(type, release);

// ---- The page

const page = new PageView({ store, onMend: openMend });
const showEnd = () => store.set({ goesOn: false });
const doMessage = () => ({ claim, finish, train, show: showEnd, retry: () => feed.hurry() })[byId("message-button").dataset.action]();
byId("form").addEventListener("submit", (event) => { event.preventDefault(); take(); });
for (const [id, command] of Object.entries({ skip, undo, train, finish, back: leaveMend, "message-button": doMessage })) {
  byId(id).addEventListener("click", command);
}
byId("go-on").addEventListener("click", () => {
  store.set({ goesOn: true });
  queueMicrotask(() => focusField(true));
});
document.addEventListener("visibilitychange", () => document.hidden ? release() : feed.hurry());
feed.follow();
