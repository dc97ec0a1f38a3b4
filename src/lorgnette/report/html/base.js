/* Shows chart values under the pointer, copies commands. The page works without it. */

const formatNumber = (value) => {  // the same form as format_number in charts.py
  if (!Number.isInteger(value) || Math.abs(value) >= 1e6) value = Number(value.toPrecision(4));
  const size = Math.abs(value);
  if (size && !(size >= 0.001 && size < 1e6)) {
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`.replaceAll("-", "−");
  }
  const text = Number.isInteger(value) ? String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f") : String(value);
  return text.replace("-", "−");
};

const findNearest = (points, x) => {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? low : high;
};

const connectChart = (figure, chart) => {
  const plot = figure.querySelector(".plot"), cross = figure.querySelector(".cross"), readout = figure.querySelector(".readout");
  const longest = chart.lines.reduce((a, b) => (b.points.length > a.points.length ? b : a));
  let index = -1;
  const show = (target) => {
    index = Math.max(0, Math.min(longest.points.length - 1, target));
    const x = longest.points[index][0];
    cross.hidden = false;
    cross.style.left = `${100 * (x - chart.x[0]) / (chart.x[1] - chart.x[0])}%`;
    cross.replaceChildren();
    const parts = [`${chart.word} ${formatNumber(x)}`];
    for (const line of chart.lines) {
      const [step, value] = line.points[findNearest(line.points, x)];
      parts.push(`${line.name} ${formatNumber(value)}` + (step === x ? "" : ` (${chart.word} ${formatNumber(step)})`));
      if (step !== x) continue;
      const dot = document.createElement("i");
      dot.className = `color${line.color}`;
      dot.style.bottom = `${100 * (value - chart.y[0]) / (chart.y[1] - chart.y[0])}%`;
      cross.append(dot);
    }
    readout.textContent = parts.join(" · ");
  };
  const hide = () => { cross.hidden = true; readout.textContent = ""; index = -1; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    show(findNearest(longest.points, chart.x[0] + (event.clientX - box.left) / box.width * (chart.x[1] - chart.x[0])));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const last = longest.points.length - 1;
    const target = { ArrowLeft: index < 0 ? last : index - 1, ArrowRight: index + 1, Home: 0, End: last }[event.key];
    if (target !== undefined) { show(target); event.preventDefault(); }
    if (event.key === "Escape") hide();
  });
};
const data = JSON.parse(document.getElementById("data").textContent);
for (const figure of document.querySelectorAll(".chart")) connectChart(figure, data.charts[Number(figure.dataset.chart)]);

if (navigator.clipboard) {
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    const source = button.previousElementSibling, label = button.textContent;
    button.addEventListener("click", async () => {
      const csv = "csv" in button.dataset ? decodeURIComponent(source.href.slice(source.href.indexOf(",") + 1)) : "";
      await navigator.clipboard.writeText(csv || source.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1500);
    });
  }
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
