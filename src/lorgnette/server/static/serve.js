/* Asks the served models about an image, and shows their answers beside each other while they come. */

import { drawBoxes, findBoxes } from "./box_layer.js";
import { streamChat } from "./chat_stream.js";
import { connectCopyButtons } from "./copy.js";
import { formatCurl, formatPython } from "./examples.js";
import { readImage, watchFiles } from "./image_file.js";
import { Store } from "./store.js";

const { models, has_api_key: hasKey, max_image_bytes: maxImageBytes } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const [form, promptField, status] = ["form", "prompt", "status"].map(byId);
const checkboxes = [...document.querySelectorAll("[name=model]")];
const hasMouse = matchMedia("(pointer: fine)").matches;

/* answers: by model's name; { text, seconds, state, problem, boxes }, with the state busy, done, cut, stopped or failed.
 * question: what they answer. */
const store = new Store({ image: null, prompt: "", chosen: [], question: null, answers: {}, problem: "" });
const controllers = new Map();

// ---- Questions and answers

const ask = () => {
  const { image, prompt, chosen } = store.state;
  if (!image) return complain("There is no image yet: drop one, paste one, or choose one.");
  forget();
  store.set({ question: { image, prompt } });
  for (const name of chosen) answer(name);
  if (hasMouse) return;
  promptField.blur();  // a phone's keyboard covers the answers
  byId("answers").scrollIntoView({ block: "nearest" });
};

const answer = async (name) => {
  const { image, prompt } = store.state.question, controller = new AbortController(), begin = performance.now();
  const count = () => (performance.now() - begin) / 1000;
  let text = "";
  const update = (change) => {
    if (controllers.get(name) !== controller) return;  // another question has taken its place
    const own = { text, seconds: count(), problem: "", boxes: [], ...change };
    store.set({ answers: { ...store.state.answers, [name]: own } });
    if (own.state !== "busy") announce([`${titles.get(name)}:`, text, own.problem, formatFacts(name, own)].filter(Boolean).join(" "));
  };
  controllers.set(name, controller);
  update({ state: "busy" });
  const content = [{ type: "image_url", image_url: { url: image.dataUrl } }];
  if (prompt.trim()) content.push({ type: "text", text: prompt });  // else the server takes the model's own
  try {
    const onText = (piece) => { text += piece; update({ state: "busy" }); };
    const reason = await streamChat({ model: name, messages: [{ role: "user", content }] }, { signal: controller.signal, onText });
    const seconds = count(), boxes = await findBoxes(name, text, image, controller.signal);
    update({ state: reason === "length" ? "cut" : "done", seconds, boxes });
  } catch (error) {
    update(controller.signal.aborted ? { state: "stopped" } : { state: "failed", problem: explain(error) });
  }
};

const isBusy = () => Object.values(store.state.answers).some(({ state }) => state === "busy");
const stop = () => { for (const controller of controllers.values()) controller.abort(); };
const forget = () => {
  stop();
  controllers.clear();
  status.replaceChildren();
  store.set({ question: null, answers: {}, problem: "" });
};

let numFiles = 0;
const takeFile = async (file) => {
  const number = ++numFiles;
  let image;
  try {
    image = await readImage(file, maxImageBytes);
  } catch (error) {
    return complain(error.message);
  }
  if (number !== numFiles) return URL.revokeObjectURL(image.address);  // a later one was read faster
  if (store.state.image) URL.revokeObjectURL(store.state.image.address);
  forget();
  store.set({ image });
  if (hasMouse) promptField.focus();  // a phone would open its keyboard over the image
};

// ---- Words

const announce = (text) => status.append(Object.assign(document.createElement("p"), { textContent: text }));
const complain = (problem) => {
  store.set({ problem });
  announce(problem);
};
const explain = (error) => {
  if (error.status === 0) return `${error.message} Start it again; the image and the prompt are kept here.`;
  if (error.status === 401) return "This page is of another start of the server. Open the address that it printed last.";
  const text = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
};
const countWords = (text) => {  // of Chinese too
  let count = 0;
  for (const { isWordLike } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)) count += isWordLike;
  return count;
};
const formatFacts = (name, { text, seconds, state }) => {
  const words = countWords(text), { max_new_tokens: limit } = models.find((model) => model.name === name);
  const end = { busy: "", done: "✓ done", cut: `cut at ${limit} tokens`, stopped: "stopped", failed: "" }[state];
  return [`${seconds.toFixed(seconds < 10 ? 1 : 0)} s`, `${words} word${words === 1 ? "" : "s"}`, end].filter(Boolean).join(" · ");
};

// ---- What is drawn

const setText = (element, text) => {  // what stays keeps the user's selection
  if (element.textContent !== text) element.textContent = text;
};
const showText = (element, text) => {
  setText(element, text);
  element.hidden = !text;
};

const drawImage = ({ image }) => {
  const element = byId("image");
  if (image && element.src !== image.address) Object.assign(element, { src: image.address, alt: image.name });
  element.hidden = !image;
  byId("invitation").hidden = Boolean(image);
  showText(byId("file-facts"), image ? `${image.name} · ${image.width} × ${image.height}` : "");
};

const drawAnswers = ({ answers, chosen, image, problem }) => {
  for (const card of document.querySelectorAll(".answer")) {
    const name = card.dataset.model, own = answers[name] ?? { text: "", state: "", problem: "", boxes: [] };
    card.hidden = !chosen.includes(name);
    card.dataset.state = own.state;
    card.setAttribute("aria-busy", own.state === "busy");
    setText(card.querySelector(".text"), own.text);
    showText(card.querySelector(".problem"), own.problem);
    setText(card.querySelector(".progress"), own.state ? formatFacts(name, own) : "");
    setText(card.querySelector(".num-boxes"), own.boxes.length === 1 ? "1 box" : `${own.boxes.length} boxes`);
    card.querySelector(".box-key").hidden = !own.boxes.length;
  }
  const shown = models.filter(({ name }) => chosen.includes(name) && answers[name]?.boxes.length);
  const layers = shown.map(({ name, box_style: style }) => ({ style, boxes: answers[name].boxes }));
  drawBoxes(byId("boxes"), image ?? { width: 1, height: 1 }, layers);
  showText(byId("problem"), problem);
  const button = byId("stop"), hadFocus = document.activeElement === button;
  button.hidden = !isBusy();
  if (button.hidden && hadFocus) promptField.focus();
};

const drawExamples = ({ image, prompt, chosen }) => {
  const tuned = models.find((model) => chosen.includes(model.name) && !model.is_base);
  const file = image ?? { name: "image.jpg", type: "image/jpeg" };
  const question = { origin: location.origin, model: tuned?.name ?? chosen[0], prompt: prompt.trim() ? prompt : "", file, hasKey };
  setText(byId("example-file"), file.name);
  setText(byId("curl"), formatCurl(question));
  setText(byId("python"), formatPython(question));
};

// ---- What the user does

const titles = new Map(models.map((model) => [model.name, model.title]));
const prompts = new Set(models.map((model) => model.prompt));
promptField.value = prompts.size === 1 ? models[0].prompt : "";
if (prompts.size > 1) promptField.placeholder = "empty: the prompt that each model was tuned with";
const readChosen = () => (checkboxes.length ? checkboxes.filter((box) => box.checked).map((box) => box.value) : models.map((model) => model.name));
store.set({ prompt: promptField.value, chosen: readChosen() });

promptField.addEventListener("input", () => store.set({ prompt: promptField.value }));
for (const box of checkboxes) {
  box.addEventListener("change", () => {
    if (!readChosen().length) box.checked = true;  // one at least
    if (!box.checked) controllers.get(box.value)?.abort();
    store.set({ chosen: readChosen() });
    const { question, answers } = store.state, hasAnswer = ["busy", "done", "cut"].includes(answers[box.value]?.state);
    if (box.checked && question && !hasAnswer) answer(box.value);
  });
}
for (const input of ["file", "camera"].map(byId)) {
  input.addEventListener("change", () => {
    if (input.files.length) takeFile(input.files[0]);
    input.value = "";  // the same file may be chosen again
  });
}
watchFiles(byId("stage"), takeFile, () => complain("That is no file. Nothing is fetched from other pages: save the image, then drop its file."));
byId("stage").addEventListener("click", ({ target }) => { if (!target.closest("label, img")) byId("file").click(); });
form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
byId("stop").addEventListener("click", stop);
addEventListener("keydown", (event) => {
  const isComposing = event.isComposing || event.keyCode === 229;  // Enter then ends a word of an input method
  const asks = event.key === "Enter" && !event.shiftKey && (event.target === promptField || event.target === document.body);
  if (asks && !isComposing) {
    event.preventDefault();
    ask();
  } else if (event.key === "Escape" && !isComposing) {
    stop();
  }
});
connectCopyButtons();
for (const draw of [drawImage, drawAnswers, drawExamples]) store.subscribe(draw);
