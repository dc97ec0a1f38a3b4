/* Buttons that copy the text of the element that data-source names. */

const copyText = async (source) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(source.textContent);
  getSelection().selectAllChildren(source);  // a page from another machine without TLS has no clipboard
  document.execCommand("copy");
  getSelection().removeAllRanges();
};

/** Those in `root`: each once. */
export const connectCopyButtons = (root = document) => {
  for (const button of root.querySelectorAll(".copy")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      await copyText(document.getElementById(button.dataset.source));
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1500);
    });
  }
};
