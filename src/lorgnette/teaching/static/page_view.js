/* Draws the page from its state. All words of the user and of the model enter as text. */

import { connectCopyButtons } from "./copy.js";
import { countSeconds } from "./entry.js";
import { Curve } from "./curve.js";
import { readImageProblem } from "./requests.js";
import { findChanges } from "./word_changes.js";

const byId = (id) => document.getElementById(id);
const setText = (element, text) => {  // what stays keeps the user's selection
  if (element.textContent !== text) element.textContent = text;
};
const showText = (element, text) => {
  setText(element, text);
  element.hidden = !text;
};
const build = (name, properties, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const formatSeconds = (seconds) => `${Math.floor(seconds)} s`;

const simplify = (text) => text.normalize("NFC").toLowerCase().trim().replace(/[\p{P}\s]+$/u, "");
/** The label that a text means; "" if it is none. */
export const findLabel = (labels, text) => labels.find((label) => simplify(label) === simplify(text ?? "")) ?? "";

/** Whether the untuned model may be asked about the image: not where the answer is to be compared with a suggestion unseen. */
export const hasUntuned = ({ view, entry }) =>
  Boolean(view?.tuned_on && entry && !entry.isMend && view.current?.id === entry.id && view.current.state !== "blind" && view.current.state !== "broken");

export class PageView {
  #store;
  #received = countSeconds();  // when the state came, for the seconds that run on
  #imageProblems = new Map();
  #shown = {};
  #said = "";

  constructor({ store, onMend }) {
    this.#store = store;
    this.onMend = onMend;
    this.curve = new Curve(byId("plot"), byId("readout"));
    this.image = byId("image");
    this.image.addEventListener("load", () => this.image.classList.remove("loading"));
    this.image.addEventListener("error", () => this.#explainImage());
    for (const element of [byId("zoom"), this.image]) element.addEventListener("click", () => this.#enlarge());
    byId("large").addEventListener("click", () => byId("large").close());
    if (matchMedia("(max-width: 52rem)").matches) byId("score").open = false;
    this.#fitHeight();
    for (const draw of [this.#drawHeader, this.#drawMessage, this.#drawImage, this.#drawPanel, this.#drawScore, this.#drawHistory, this.#drawFinished, this.#announce]) {
      store.subscribe((state) => draw.call(this, state));
    }
    setInterval(() => this.#drawMessage(store.state), 1000);
  }

  // ---- What the script asks

  getAddress(number, side = 0) {
    const { view, data } = this.#store.state;
    return `/image/${number}?start=${view?.start ?? data.start}${side ? `&side=${side}` : ""}`;
  }

  /** An error of the server as a sentence. */
  explain(message) {
    const text = message.charAt(0).toUpperCase() + message.slice(1);
    return /[.!?]$/.test(text) ? text : `${text}.`;
  }

  choose(label) {
    this.#drawLabels(this.#store.state.view.labels);
    for (const input of byId("labels").querySelectorAll("input")) input.checked = input.value === label;
  }

  lock() { byId("field").readOnly = true; }
  unlock() { byId("field").readOnly = false; }

  // ---- Above the work

  #drawHeader({ view, sending }) {
    if (!view) return;
    const { answered, skipped, total } = view.counts;
    const parts = [`${answered} of ${total}`, skipped && `${skipped} skipped`, view.tuned_on ? `tuned on ${view.tuned_on}` : "untuned"];
    setText(byId("progress"), parts.filter(Boolean).join(" · "));
    setText(byId("model"), ` · ${view.model}`);
    const isBusy = view.phase === "loading" || view.phase === "finishing" || view.phase === "failed" || view.tab === "other";
    byId("train").disabled = isBusy || Boolean(view.round) || !answered;
    byId("finish").disabled = isBusy || !answered;
    byId("finish").classList.toggle("primary", !view.current && !isBusy);
    document.body.dataset.phase = view.phase;
  }

  /** { kind, text, button, action, details, images, part }. part: how much of the work is done, if that is known. */
  #findMessage({ view, lost, data, goesOn }) {
    if (lost?.kind === "gone") return { kind: "lost", text: `lorgnette has stopped. Your words are kept here. Start \`${data.command}\` again.`, button: "Try now", action: "retry" };
    if (lost?.kind === "restarted") return { kind: "lost", text: "lorgnette was started again. Open the address that it printed last; your words are kept here.", button: "Try now", action: "retry" };
    if (lost?.kind === "other_run") return { kind: "lost", text: "Another run is taught at this address now. Your words are kept here: copy them, then reload the page." };
    if (lost) return { kind: "lost", text: this.explain(lost.text), button: "Try now", action: "retry" };
    if (!view) return { kind: "busy", text: "Connecting …" };
    if (view.tab === "other") return { kind: "other", text: "Open in another tab.", button: "Use it here", action: "claim" };
    const more = countSeconds() - this.#received;
    if (view.progress) {
      const { text, seconds, done, total } = view.progress;
      const words = [text, "…", total ? `${done} of ${total}` : "", formatSeconds(seconds + more)].filter(Boolean);
      return { kind: "busy", text: words.join(" "), part: total ? done / total : undefined };
    }
    if (view.round) {
      const { answers, seconds, step, total } = view.round;
      return { kind: "busy", text: `Tuning on ${count(answers, "answer")} … ${formatSeconds(seconds + more)}`, part: total ? step / total : undefined };
    }
    if (view.phase === "finished" && goesOn) return { kind: "tuned", text: "Finished: the report is written, and so are the captions of the other images.", button: "Show", action: "show" };
    if (view.phase === "failed" && !view.notice) return { kind: "failed", text: "The model has stopped: the terminal says why. You can go on writing." };
    if (!view.notice) return { kind: "", text: "" };
    const { kind, text, details, images, action } = view.notice;
    const button = { train: "Try again", finish: "Finish" }[action];
    const canAct = view.phase === "ready" || view.phase === "finished";
    return { kind, text, details, images, ...(canAct && { button, action }) };
  }

  #drawMessage(state) {
    if (state.view !== this.#shown.view) [this.#shown.view, this.#received] = [state.view, countSeconds()];
    const { kind, text, button, action, details = "", images = [], part } = this.#findMessage(state);
    const message = byId("message"), element = byId("message-text");
    message.dataset.kind = kind;
    if (this.#shown.message !== text) {
      this.#shown.message = text;
      element.replaceChildren(...text.split("`").map((piece, index) => (index % 2 ? build("code", { textContent: piece }) : piece)));
    }
    showText(byId("message-button"), button ?? "");
    byId("message-button").dataset.action = action ?? "";
    const isShort = kind === "tuned";
    showText(byId("message-note"), isShort ? details : "");
    setText(byId("details-text"), details);
    byId("message-details").hidden = !details || isShort;
    this.#drawThumbnails(images);
    const line = byId("line");
    line.dataset.state = kind === "busy" ? (part === undefined ? "busy" : "part") : "";
    line.style.transform = kind === "busy" && part !== undefined ? `scaleX(${part})` : "";
  }

  #drawThumbnails(images) {
    const key = images.join();
    if (this.#shown.thumbnails === key) return;
    this.#shown.thumbnails = key;
    const side = this.#store.state.data.thumbnail_side;
    byId("message-images").replaceChildren(...images.map((number) => build("img", { src: this.getAddress(number, side), alt: `image ${number}` })));
    byId("message-images").hidden = !images.length;
  }

  /** Notices, losses and each new suggestion, for screen readers: each once, and whole. */
  #announce(state) {
    const { view, entry } = state;
    const { kind, text, button } = this.#findMessage(state);
    const isNews = ["", "busy"].includes(kind) === false;
    this.#say("message", isNews ? [text, button && `Button: ${button}.`].filter(Boolean).join(" ") : "");
    const isWhole = entry && (entry.isMend || !["waiting", "streaming"].includes(view.current?.state));
    if (isWhole && this.#shown.announced !== `${entry.isMend} ${entry.id}`) {
      this.#shown.announced = `${entry.isMend} ${entry.id}`;
      this.#append(`${entry.name}. ${entry.text || "No suggestion."}`);
    }
    const untuned = this.#showsUntuned(state) ? view.current.untuned ?? "" : "";
    if (untuned && this.#shown.untuned !== untuned) this.#append(`Untuned model: ${untuned}`);
    this.#shown.untuned = untuned;
  }

  #say(key, text) {
    const plain = text.replaceAll("`", "");
    if (this.#said === plain) return;
    this.#said = plain;
    if (plain) this.#append(plain);
  }

  #append(text) {
    const status = byId("status");
    status.append(build("p", { textContent: text }));
    while (status.childElementCount > 6) status.firstElementChild.remove();
  }

  // ---- The image

  #drawImage({ view, entry, data }) {
    if (!entry) return;
    const isCurrent = !entry.isMend && view.current?.id === entry.id;
    const problem = isCurrent && view.current.state === "broken" ? view.current.problem : this.#imageProblems.get(entry.image) ?? "";
    const address = this.getAddress(entry.image), { image } = this;
    if (image.getAttribute("src") !== address) {
      image.src = address;
      image.classList.toggle("loading", !image.complete);  // else the last image stands beside this one's words
    }
    image.alt = entry.name;
    image.hidden = Boolean(problem);
    showText(byId("broken"), problem ? `Cannot be read: ${this.explain(problem).replace(/^./, (letter) => letter.toLowerCase())}` : "");
    setText(byId("name"), entry.name);
    const { width, height } = isCurrent ? view.current : {};
    setText(byId("size"), width && !problem ? `${width} × ${height}` : "");
    byId("zoom").hidden = Boolean(problem);
  }

  async #explainImage() {
    const { entry } = this.#store.state, address = this.image.getAttribute("src");
    if (!entry || address !== this.getAddress(entry.image)) return;
    const problem = await readImageProblem(address);
    this.#imageProblems.set(entry.image, problem);
    this.#store.set({});
  }

  #enlarge() {
    const large = byId("large"), image = build("img", { src: this.image.src, alt: this.image.alt });
    large.append(image);
    large.showModal();
    large.addEventListener("close", () => {
      image.remove();
      byId("field").focus({ preventScroll: true });
    }, { once: true });
  }

  /** A phone's keyboard leaves less height than CSS knows. */
  #fitHeight() {
    const viewport = window.visualViewport;
    if (!viewport) return;
    const fit = () => {
      document.documentElement.style.setProperty("--height", `${Math.round(viewport.height * viewport.scale)}px`);
      if (document.activeElement === byId("field") && matchMedia("(pointer: coarse)").matches) byId("take").scrollIntoView({ block: "nearest" });
    };
    viewport.addEventListener("resize", fit);
    fit();
  }

  // ---- The field

  #drawPanel(state) {
    const { view, entry, sending, problem, isMac, goesOn } = state;
    const isShown = Boolean(view && entry), isFinished = view?.phase === "finished" && !goesOn && !entry?.isMend;
    byId("work").dataset.entry = isShown && !isFinished ? "shown" : "none";
    for (const id of ["stage", "form"]) byId(id).hidden = !isShown || isFinished;
    showText(byId("no-image"), view && !isShown && !isFinished ? this.#explainEmpty(view) : "");
    if (!isShown) return;
    const { labels, current, tab } = view, hasLabels = labels.length > 0;
    const isCurrent = !entry.isMend, isOther = tab === "other", isBroken = isCurrent && current?.state === "broken";
    const isComing = isCurrent && ["waiting", "streaming"].includes(current?.state) && !entry.isStopped;
    const field = byId("field");
    setText(byId("label"), this.#isCaption(view.prompt) && !hasLabels ? "Caption" : "Answer");
    setText(byId("source"), this.#showsUntuned(state) ? "Untuned model" : this.#describeSource(view, entry));
    showText(byId("prompt"), this.#isCaption(view.prompt) ? "" : view.prompt);
    field.hidden = hasLabels || isBroken;
    field.readOnly = Boolean(sending) || isOther || isComing;
    field.form.setAttribute("aria-busy", isComing);
    field.placeholder = isComing ? `${this.#describeWait(view)}, or write it yourself` : "";
    this.#drawLabels(labels);
    byId("labels").hidden = !hasLabels || isBroken;
    byId("labels").disabled = field.readOnly;
    this.#drawUntuned(state);
    this.#drawChanges(entry, isComing);
    showText(byId("problem"), problem);
    setText(byId("take"), entry.isMend ? "Save" : "Take");
    byId("take").disabled = isOther || Boolean(sending);
    byId("take").hidden = isBroken;
    byId("label").parentElement.hidden = isBroken;
    for (const id of ["skip", "undo"]) byId(id).hidden = entry.isMend;
    byId("skip").disabled = isOther || Boolean(sending);
    byId("undo").disabled = isOther || !(view.counts.answered || view.counts.skipped);
    byId("back").hidden = !entry.isMend;
    this.#drawKeys(hasLabels, entry.isMend, isMac, hasUntuned(state));
  }

  /** What the untuned model says lies over the field as long as the user holds the keys or the button. */
  #drawUntuned(state) {
    const { view, isMac } = state, text = view.current?.untuned ?? null;
    const button = byId("untuned"), element = byId("untuned-text"), isShown = this.#showsUntuned(state);
    button.hidden = !hasUntuned(state);
    button.title = `Hold it to see what the untuned model says: ${isMac ? "⌃ U" : "Alt+U"}`;
    button.setAttribute("aria-pressed", isShown);
    element.hidden = !isShown;
    element.classList.toggle("waiting", !text);
    setText(element, text ?? this.#describeUntunedWait(view));
    if (text === "") setText(element, "The untuned model says nothing.");
  }

  #showsUntuned(state) { return state.isHeld && hasUntuned(state); }

  #describeUntunedWait({ round, phase }) {
    if (phase === "finishing") return "The untuned model answers after the captions …";
    return round ? "The untuned model answers after this round …" : "The untuned model answers …";
  }

  #explainEmpty({ phase, counts }) {
    if (counts.left) return phase === "loading" ? "The next image comes as soon as the model has looked at all of them." : "The next image is chosen …";
    return "Every image is answered. Finish tunes once more and writes the report.";
  }

  #isCaption(prompt) { return !prompt.trim() || /caption|describe|coco yes/i.test(prompt); }

  /** Why there is no suggestion yet: the model does one thing at a time. */
  #describeWait({ round }) { return round ? "Suggesting after this round …" : "Suggesting …"; }

  #describeSource(view, entry) {
    const { current, phase } = view;
    if (entry.isMend) return "An earlier answer";
    if (current.is_review) return "Review: the present answer";
    if (current.alike) return `Like ${current.alike}`;
    const states = { waiting: this.#describeWait(view), streaming: "Suggesting …", no_model: phase === "loading" ? "No model yet: write it yourself" : "Without a suggestion", blind: "Without a suggestion, to compare", broken: "" };
    return states[current.state] ?? (current.round ? `Tuned on ${count(current.tuned_on, "answer")}` : "Untuned model");
  }

  #drawKeys(hasLabels, isMend, isMac, isUntunedThere) {
    const [skip, untuned] = isMac ? ["⌃ S", "⌃ U"] : ["Alt S", "Alt U"], undo = isMac ? "⌘ Z" : "Ctrl Z";
    const keys = isMend
      ? [["Enter", "saves"], ["Esc", "goes back"], ["PageUp", "earlier"], ["PageDown", "later"]]
      : [hasLabels ? ["1–9", "choose"] : null, ["Enter", "takes"], hasLabels ? null : ["Shift Enter", "new line"], ["Esc", "the suggestion again"], [skip, "skips"], [undo, "undoes"], isUntunedThere ? [untuned, "held: the untuned model"] : null, ["PageUp", "earlier answers"]];
    const key = JSON.stringify(keys);
    if (this.#shown.keys === key) return;
    this.#shown.keys = key;
    byId("keys").replaceChildren(...keys.filter(Boolean).map(([names, does]) => build("span", {}, ...names.split(" ").flatMap((name) => [build("kbd", { textContent: name }), " "]), does)));
  }

  #drawLabels(labels) {
    const key = JSON.stringify(labels);
    if (this.#shown.labels === key) return;
    this.#shown.labels = key;
    const choices = labels.map((label, index) => build("label", {},
      build("input", { type: "radio", name: "answer", value: label }),
      ...(index < 9 ? [build("kbd", { textContent: index + 1 }), " "] : []), build("span", { textContent: label, dir: "auto" })));
    byId("labels").append(...choices);
  }

  #drawChanges({ first, text }, isComing) {
    const before = first.trim(), after = text.trim();
    const key = isComing || !before || !after ? "" : JSON.stringify([before, after]);
    if (this.#shown.changes === key) return;
    this.#shown.changes = key;
    const names = { out: "del", in: "ins" };
    const parts = key && before !== after ? findChanges(before, after) : [];
    const pieces = parts.map(({ kind, text: piece }) => (kind === "same" ? piece : build(names[kind], { textContent: piece })));
    byId("changes").replaceChildren(...(parts.length ? ["You changed: ", build("bdi", {}, ...pieces)] : []));
  }

  // ---- Below

  #drawScore({ view }) {
    if (!view) return;
    const { window: share, recent, is_edit_first: isEditFirst, curve, counted } = view.score;
    byId("score").hidden = !counted;
    if (!counted) return;
    const taken = `${share.taken} of ${share.of === counted ? share.of : `the last ${share.of}`}`;
    setText(byId("score-title"), isEditFirst ? "Close to what you write" : "Taken as they stand");
    setText(byId("score-text"), isEditFirst ? `${Math.round(100 * (1 - recent.edit))} % of the letters stay` : taken);
    const parts = [
      isEditFirst ? `${taken} taken as they stand` : `${Math.round(100 * recent.edit)} % of the letters changed`,
      recent.keys_saved > 0 && `${Math.round(100 * recent.keys_saved)} % of key presses saved`,
      recent.seconds !== null && `${recent.seconds.toFixed(1)} s an image`,
    ];
    setText(byId("effort"), parts.filter(Boolean).join(" · "));
    this.curve.draw(curve);
    setText(byId("first"), curve[0] === curve.at(-1) ? "" : String(curve[0][0]));
    setText(byId("last"), count(curve.at(-1)[0], "answer"));
    setText(byId("anchoring"), this.#describeAnchoring(view.score.blind));
  }

  #describeAnchoring(blind) {
    if (!blind) return "People take what is offered. --blind 10 measures how much.";
    const shown = blind.shown ? `${blind.shown.taken} of ${blind.shown.of}` : "none";
    return `Without a look at the suggestion you wrote the same ${blind.blind.taken} of ${blind.blind.of} times, with it ${shown}.`;
  }

  #drawHistory({ view, entry }) {
    if (!view) return;
    byId("past").hidden = !view.history.length;
    const key = JSON.stringify([view.history, view.start, view.tab]);
    if (this.#shown.history !== key) {
      this.#shown.history = key;
      byId("history").replaceChildren(...view.history.map((answer) => this.#buildPast(answer, view.tab === "other")));
    }
    for (const button of byId("history").querySelectorAll("button")) button.setAttribute("aria-pressed", Boolean(entry?.isMend && entry.id === button.dataset.id));
  }

  #buildPast(answer, isOther) {
    const { id, image, name, text, suggestion } = answer;
    const [sign, means] = suggestion === null ? ["+", "written"] : suggestion.normalize("NFC").trim() === text ? ["✓", "taken"] : ["~", "changed"];
    const button = build("button", { type: "button", disabled: isOther, title: `Mend the answer for ${name}` },
      build("img", { src: this.getAddress(image, this.#store.state.data.thumbnail_side), alt: name, loading: "lazy" }),
      build("span", { className: `sign ${means}`, ariaLabel: means, role: "img", textContent: sign }),
      build("span", { className: "text", dir: "auto", textContent: text }));
    button.dataset.id = id;
    button.addEventListener("click", () => this.onMend(answer));
    return build("li", {}, button);
  }

  #drawFinished({ view, goesOn, entry }) {
    const isShown = view?.phase === "finished" && !goesOn && !entry?.isMend;
    byId("finished").hidden = !isShown;
    if (!isShown) return;
    const { answered, suggested, total } = view.finished, rest = total - answered - suggested;
    const parts = [`${count(answered, "image")} captioned by you`, suggested && `${suggested} by the model`, rest > 0 && `${rest} without a caption`];
    setText(byId("finished-text"), `${parts.filter(Boolean).join(", ")}. The server stays until Ctrl+C in the terminal.`);
    byId("go-on").hidden = !view.current;
    const key = JSON.stringify([view.files, view.commands]);
    if (this.#shown.finished === key) return;
    this.#shown.finished = key;
    const names = { captions: "Your captions", suggestions: "The model's captions, least sure first", adapter: "Adapter", report: "Report" };
    const files = Object.entries(names).filter(([file]) => view.files[file]);
    byId("files").replaceChildren(...files.map(([file, name]) => build("div", {}, build("dt", { textContent: name }), build("dd", { textContent: view.files[file] }))));
    byId("commands").replaceChildren(...view.commands.map((command, index) => {
      const button = build("button", { type: "button", className: "copy", textContent: "Copy" });
      button.dataset.source = `command${index}`;
      return build("li", {}, build("code", { id: `command${index}`, textContent: command }), button);
    }));
    connectCopyButtons(byId("commands"));
  }
}
