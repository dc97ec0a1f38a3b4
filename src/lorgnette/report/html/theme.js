"use strict";
/* Switches light and dark, and remembers it. Inlined into a report; a page that a server sends loads it as a module. */

const root = document.documentElement;
const theme = document.getElementById("theme");
const storeTheme = (value) => {  // returns the stored theme; a page opened from a file may have no storage
  try {
    if (value) localStorage.setItem("lorgnette-theme", value);
    return localStorage.getItem("lorgnette-theme");
  } catch { return null; }
};
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const updateLabel = () => {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", isDark() ? "Use light colors" : "Use dark colors");
};
if (["light", "dark"].includes(storeTheme())) root.dataset.theme = storeTheme();
theme.hidden = false;
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; storeTheme(root.dataset.theme); updateLabel(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", updateLabel);
updateLabel();
