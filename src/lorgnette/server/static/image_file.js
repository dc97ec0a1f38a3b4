/* An image file from the disk, the clipboard, a drop or a camera. */

const readBase64 = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
  reader.readAsDataURL(file);
});

/** The image in a file: { name, type, width, height, address, dataUrl }. address: for an img; free it by
 *  URL.revokeObjectURL. Throws an Error in words. The bytes are sent as they are: the server resizes, as in training. */
export const readImage = async (file, maxBytes) => {
  const name = file.name || "image.png";
  if (file.type && !file.type.startsWith("image/")) throw new Error(`${name} is no image.`);
  if (file.size > maxBytes) {
    const megabytes = (bytes) => Math.floor(bytes / 2 ** 20);
    throw new Error(`${name} has ${megabytes(file.size)} MiB; at most ${megabytes(maxBytes)} can be sent. Save it smaller.`);
  }
  const base64 = await readBase64(file);
  const address = URL.createObjectURL(file), image = new Image();
  image.src = address;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(address);
    throw new Error(`${name} cannot be shown: it is damaged, or this browser does not know its format. Use JPEG, PNG or WebP.`);
  }
  const type = /^image\/[\w.+-]+$/.test(file.type) ? file.type : "image/jpeg";  // the server looks at the bytes
  return { name, type, width: image.naturalWidth, height: image.naturalHeight, address, dataUrl: `data:${type};base64,${base64}` };
};

/** Calls `onFile` with the file that is dropped on the window or pasted, and `onOther` if something else is dropped.
 *  `target` has the class "over" while a file is over the window. */
export const watchFiles = (target, onFile, onOther) => {
  const chooseImage = (files) => [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
  addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;  // text goes into its field
    event.preventDefault();
    onFile(chooseImage(event.clipboardData.files));
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();  // else the browser opens the file in the page's place
    target.classList.add("over");
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) target.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    target.classList.remove("over");
    const file = chooseImage(event.dataTransfer.files);
    if (file) onFile(file);
    else onOther();
  });
};
