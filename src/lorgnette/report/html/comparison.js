/* Sorts, filters and walks through the cards. data.metrics[m].values[candidate][card] is the value of a single answer. */
const byId = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".comparison-card")];
const imageNames = (card) => [...card.querySelectorAll("img")].map((image) => image.alt).join(" ");
const cardTexts = cards.map((card) => `${card.textContent} ${imageNames(card)}`.replace(/\s+/g, " ").toLowerCase());
const selected = (id) => Number(byId(id).value);
const formatSigned = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(3);
const isSortable = data.metrics.length > 0;

const computeGains = () => {  // of the selected candidate over the baseline, per card; null without references
  const { sign, values } = data.metrics[selected("metric")];
  const own = values[selected("candidate")], other = values[selected("baseline")];
  return own.map((value, i) => (value === null || other[i] === null ? null : sign * (value - other[i])));
};

const updateColors = () => {
  const { sign, values } = data.metrics[selected("metric")], baseline = selected("baseline"), gains = computeGains();
  for (const cell of document.querySelectorAll("[data-baseline]")) cell.hidden = Number(cell.dataset.baseline) !== baseline;
  cards.forEach((card, i) => {
    card.querySelectorAll(".answer").forEach((answer, candidate) => {
      const value = values[candidate][i], difference = value === null ? 0 : sign * (value - values[baseline][i]);
      answer.classList.toggle("better", difference > 0);
      answer.classList.toggle("worse", difference < 0);
      answer.querySelector(".score").textContent = value === null ? "" : value.toFixed(3);
    });
    card.querySelector(".gain").textContent = gains[i] === null ? "" : `gain in ${byId("metric").selectedOptions[0].text} ${formatSigned(gains[i])}`;
  });
};

const sortCards = () => {
  const order = isSortable ? byId("order").value : "data";
  const indices = cards.map((_, i) => i);
  if (order !== "data") {
    const gains = computeGains(), direction = order === "gain" ? -1 : 1;
    const key = (i) => (gains[i] === null ? Infinity : direction * gains[i]);
    indices.sort((a, b) => key(a) - key(b) || a - b);
  }
  byId("cards").append(...indices.map((i) => cards[i]));
};

const filterCards = () => {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  let numShown = 0;
  cards.forEach((card, i) => {
    card.hidden = !words.every((word) => cardTexts[i].includes(word));
    numShown += !card.hidden;
  });
  byId("count").textContent = numShown === cards.length ? `${numShown}` : `${numShown} of ${cards.length}`;
  byId("no-match").hidden = numShown > 0;
};

const keepApart = (fixed, moved) => {  // a candidate is not compared with itself
  if (selected(fixed) === selected(moved)) byId(moved).value = selected(fixed) === 0 ? 1 : 0;
};

const scrollToCard = (card, block) => {  // twice: cards on the way are laid out only when passed, and that moves the target
  const scroll = () => card.scrollIntoView({ block, behavior: "instant" });
  scroll();
  requestAnimationFrame(scroll);
};

const walk = (step) => {
  const shown = [...byId("cards").children].filter((card) => !card.hidden);
  const current = shown.indexOf(document.activeElement.closest(".comparison-card"));
  const next = shown[current < 0 ? (step > 0 ? 0 : shown.length - 1) : current + step];
  if (!next) return;
  next.focus({ preventScroll: true });
  scrollToCard(next, "start");
};

const setOrder = (value) => { byId("order").value = value; sortCards(); scrollToCard(byId("cards").firstElementChild, "nearest"); };
const keys = { j: () => walk(1), k: () => walk(-1), "/": () => byId("find").focus() };
const cardKeys = { ArrowDown: () => walk(1), ArrowUp: () => walk(-1) };
if (isSortable) Object.assign(keys, { g: () => setOrder("gain"), l: () => setOrder("loss"), o: () => setOrder("data") });

byId("controls").hidden = false;
document.querySelector(".keys").hidden = false;
byId("controls").addEventListener("submit", (event) => { event.preventDefault(); walk(1); });
byId("find").addEventListener("input", filterCards);
if (isSortable) {
  const update = () => { byId("table-baseline").value = byId("baseline").value; updateColors(); sortCards(); };
  byId("order").addEventListener("change", sortCards);
  byId("metric").addEventListener("change", update);
  byId("candidate").addEventListener("change", () => { keepApart("candidate", "baseline"); update(); });
  byId("baseline").addEventListener("change", () => { keepApart("baseline", "candidate"); update(); });
  byId("table-baseline").addEventListener("change", () => {
    byId("baseline").value = byId("table-baseline").value;
    keepApart("baseline", "candidate");
    update();
  });
  updateColors();
}
filterCards();
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {  // anywhere but in another field; leave a field, so that letters are keys again
    const isField = event.target.closest("#controls");
    if (!isField || event.target === byId("find")) { byId("find").value = ""; filterCards(); }
    if (isField) event.target.blur();
    return;
  }
  if (event.target.closest("input, select, textarea, .plot")) return;
  const action = keys[event.key] ?? (event.target.closest(".comparison-card") ? cardKeys[event.key] : undefined);
  if (action) { event.preventDefault(); action(); }
});
