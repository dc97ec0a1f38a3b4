"use strict";
/* Colours by choice, values under the pointer, commands to the clipboard. The page is whole without any of it. */

const root = document.documentElement;
const theme = document.getElementById("theme");
const stored = (value) => {
  try {
    if (value) localStorage.setItem("lorgnette-theme", value);
    return localStorage.getItem("lorgnette-theme");
  } catch { return null; }  // a page opened from a file may have no storage
};
const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const name = () => {
  theme.textContent = dark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
};
if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
theme.hidden = false;
theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; stored(root.dataset.theme); name(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
name();

const digits = (value) => {
  if (Number.isInteger(value)) return String(value).replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 0.001 && size < 1e6 ? value.toPrecision(4) : value.toExponential(2);
  return text.replace("-", "−").replace("e−", "e-").replace("e-", "e−").replace("e+", "e");
};

const nearest = (points, x) => {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? low : high;
};

const wire = (figure, chart) => {
  const plot = figure.querySelector(".plot"), cross = figure.querySelector(".cross"), readout = figure.querySelector(".readout");
  const lead = chart.lines.reduce((most, line) => (line.points.length > most.points.length ? line : most));
  let at = -1;
  const show = (place) => {
    at = Math.max(0, Math.min(lead.points.length - 1, place));
    const x = lead.points[at][0];
    cross.hidden = false;
    cross.style.left = `${100 * (x - chart.x[0]) / (chart.x[1] - chart.x[0])}%`;
    cross.replaceChildren();
    const parts = [`step ${digits(x)}`];
    for (const line of chart.lines) {
      const [where, value] = line.points[nearest(line.points, x)];
      parts.push(`${line.name} ${digits(value)}` + (where === x ? "" : ` (step ${digits(where)})`));
      if (where !== x) continue;
      const dot = document.createElement("i");
      dot.className = `colour${line.colour}`;
      dot.style.bottom = `${100 * (value - chart.y[0]) / (chart.y[1] - chart.y[0])}%`;
      cross.append(dot);
    }
    readout.textContent = parts.join(" · ");
  };
  const hide = () => { cross.hidden = true; readout.textContent = ""; at = -1; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    show(nearest(lead.points, chart.x[0] + (event.clientX - box.left) / box.width * (chart.x[1] - chart.x[0])));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const last = lead.points.length - 1;
    const to = { ArrowLeft: at < 0 ? last : at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to !== undefined) { show(to); event.preventDefault(); }
    if (event.key === "Escape") hide();
  });
};
const data = JSON.parse(document.getElementById("data").textContent);
for (const figure of document.querySelectorAll(".chart")) wire(figure, data.charts[Number(figure.dataset.chart)]);

if (navigator.clipboard) {
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
