/* Boxes over an image: the server reads them from an answer, this draws them. Lines as in the reports (base.css). */

/** The boxes in an answer, in pixels of the image: [{ corners, label }]. Most answers have none: they are not sent. */
export const findBoxes = async (model, text, { width, height }, signal) => {
  if (!/\d\s*,\s*\d/.test(text)) return [];
  const response = await fetch("/boxes", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ model, text, width, height }), signal,
  });
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  return (await response.json()).boxes;
};

const create = (name, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

const drawBox = ({ corners: [left, top, right, bottom], label }) => {
  const isPoint = right === undefined, shape = isPoint ? "h0" : `H${right}V${bottom}H${left}Z`;
  const parts = ["edge", "line"].map((kind) => create("path", { class: isPoint ? `${kind} point` : kind, d: `M${left} ${top}${shape}` }));
  if (label) parts.push(create("text", { x: left, y: top, dx: ".3em", dy: "1em" }, label));
  return parts;
};

/** layers: [{ style, boxes }], of one answer each. svg: fills the same rectangle as the image. */
export const drawBoxes = (svg, { width, height }, layers) => {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("font-size", 0.04 * Math.max(width, height));
  svg.replaceChildren(...layers.map(({ style, boxes }) => create("g", { class: style }, ...boxes.flatMap(drawBox))));
};
