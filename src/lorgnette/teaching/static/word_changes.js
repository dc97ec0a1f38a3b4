/* What changed between two texts, word by word, in any script. */

const MAX_CELLS = 1_000_000;

const split = (text) => {
  if (!Intl.Segmenter) return text.split(/(\s+)/).filter(Boolean);
  return [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)].map(({ segment }) => segment);
};

/** Length of the longest common subsequence of a[i…] and b[j…], for all i and j. */
const countCommon = (a, b) => {
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      rows[i][j] = a[i] === b[j] ? rows[i + 1][j + 1] + 1 : Math.max(rows[i + 1][j], rows[i][j + 1]);
    }
  }
  return rows;
};

/** Spaces between two changed words belong to the change: [{ kind: "same" | "out" | "in", text }]. */
const join = (steps) => {
  const parts = [];
  let out = "", into = "";
  const flush = () => {
    if (out) parts.push({ kind: "out", text: out });
    if (into) parts.push({ kind: "in", text: into });
    out = into = "";
  };
  steps.forEach(({ kind, text }, index) => {
    const isBetween = kind === "same" && !text.trim() && (out || into) && steps[index + 1]?.kind !== "same";
    if (isBetween && index + 1 < steps.length) {
      if (out) out += text;
      if (into) into += text;
    } else if (kind === "same") {
      flush();
      const last = parts.at(-1);
      if (last?.kind === "same") last.text += text;
      else parts.push({ kind, text });
    } else if (kind === "out") out += text;
    else into += text;
  });
  flush();
  return parts;
};

export const findChanges = (before, after) => {
  const a = split(before), b = split(after), steps = [];
  if (a.length * b.length > MAX_CELLS) return [{ kind: "out", text: before }, { kind: "in", text: after }];
  const common = countCommon(a, b);
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      steps.push({ kind: "same", text: a[i++] });
      j++;
    } else if (i < a.length && (j === b.length || common[i + 1][j] >= common[i][j + 1])) steps.push({ kind: "out", text: a[i++] });
    else steps.push({ kind: "in", text: b[j++] });
  }
  return join(steps);
};
