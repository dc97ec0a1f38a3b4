/* Sorts, filters and walks through the pictures. data.metrics[m].each[side][card] is the value of a single answer. */
const by = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".pair")];
const named = (card) => [...card.querySelectorAll("img")].map((picture) => picture.alt).join(" ");
const words = cards.map((card) => `${card.textContent} ${named(card)}`.replace(/\s+/g, " ").toLowerCase());
const chosen = (id) => Number(by(id).value);
const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(3);
const measured = data.metrics.length > 0;

const gains = () => {  // of the chosen side over the yardstick, card by card; null: not measured
  const { sign, each } = data.metrics[chosen("metric")], own = each[chosen("side")], other = each[chosen("over")];
  return own.map((value, place) => (value === null || other[place] === null ? null : sign * (value - other[place])));
};

const coloured = () => {
  const { sign, each } = data.metrics[chosen("metric")], over = chosen("over"), gained = gains();
  for (const gap of document.querySelectorAll("[data-over]")) gap.hidden = Number(gap.dataset.over) !== over;
  cards.forEach((card, place) => {
    card.querySelectorAll(".answer").forEach((answer, side) => {
      const value = each[side][place], difference = value === null ? 0 : sign * (value - each[over][place]);
      answer.classList.toggle("better", difference > 0);
      answer.classList.toggle("worse", difference < 0);
      answer.querySelector(".score").textContent = value === null ? "" : value.toFixed(3);
    });
    card.querySelector(".gain").textContent = gained[place] === null ? "" : signed(gained[place]);
  });
};

const sorted = () => {
  const order = measured ? by("order").value : "data";
  const places = cards.map((_, place) => place);
  if (order !== "data") {
    const gained = gains(), turn = order === "gain" ? -1 : 1;
    const key = (place) => (gained[place] === null ? Infinity : turn * gained[place]);
    places.sort((a, b) => key(a) - key(b) || a - b);
  }
  by("cards").append(...places.map((place) => cards[place]));
};

const filtered = () => {
  const wanted = by("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  cards.forEach((card, place) => {
    card.hidden = !wanted.every((word) => words[place].includes(word));
    shown += !card.hidden;
  });
  by("count").textContent = shown === cards.length ? `${shown}` : `${shown} of ${cards.length}`;
  by("none").hidden = shown > 0;
};

const apart = (kept, moved) => {  // nobody is compared with itself
  if (chosen(kept) === chosen(moved)) by(moved).value = chosen(kept) === 0 ? 1 : 0;
};

const show = (card, block) => {  // twice: cards on the way are laid out only once they are passed, and move it
  const now = () => card.scrollIntoView({ block, behavior: "instant" });
  now();
  requestAnimationFrame(now);
};

const walk = (step) => {
  const shown = [...by("cards").children].filter((card) => !card.hidden);
  const at = shown.indexOf(document.activeElement.closest(".pair"));
  const next = shown[at < 0 ? (step > 0 ? 0 : shown.length - 1) : at + step];
  if (!next) return;
  next.focus({ preventScroll: true });
  show(next, "start");
};

const ordered = (value) => { by("order").value = value; sorted(); show(by("cards").firstElementChild, "nearest"); };
const keys = { j: () => walk(1), k: () => walk(-1), "/": () => by("find").focus() };
const onCard = { ArrowDown: () => walk(1), ArrowUp: () => walk(-1) };
if (measured) Object.assign(keys, { g: () => ordered("gain"), l: () => ordered("loss"), o: () => ordered("data") });

by("tools").hidden = false;
document.querySelector(".keys").hidden = false;
by("tools").addEventListener("submit", (event) => { event.preventDefault(); walk(1); });
by("find").addEventListener("input", filtered);
if (measured) {
  const again = () => { by("yardstick").value = by("over").value; coloured(); sorted(); };
  by("order").addEventListener("change", sorted);
  by("metric").addEventListener("change", again);
  by("side").addEventListener("change", () => { apart("side", "over"); again(); });
  by("over").addEventListener("change", () => { apart("over", "side"); again(); });
  by("yardstick").addEventListener("change", () => { by("over").value = by("yardstick").value; apart("over", "side"); again(); });
  coloured();
}
filtered();
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target.closest("#tools")) {  // out of a field, so that letters are keys again
    if (event.target === by("find")) { by("find").value = ""; filtered(); }
    event.target.blur();
    return;
  }
  if (event.target.closest("input, select, textarea, .plot")) return;
  const act = keys[event.key] ?? (event.target.closest(".pair") ? onCard[event.key] : undefined);
  if (act) { event.preventDefault(); act(); }
});
