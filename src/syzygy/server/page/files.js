// Pictures between files, base64 and canvases.

import { sheet } from "./dom.js";

export const LONGEST = 512;
/** Bytes that fit into a recipe next to another image. */
const KEPT_BYTES = 120 * 1024;

/** Bytes from base64. */
export function pngOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

/** A canvas as a file. */
export function blobOf(canvas, type = "image/png", quality = undefined) {
  return new Promise((resolve) => canvas.toBlob(resolve, type, quality));
}

/** A file as a data URL. */
export function urlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** An image as it is sent to the server: at most 512 pixels a side (the model sees fewer), without anything else of the file. */
export async function reduced(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new Error("the browser cannot read this file as an image: choose a PNG, JPEG or WebP.");
  }
  const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const canvas = sheet(Math.max(1, Math.round(picture.width * scale)), Math.max(1, Math.round(picture.height * scale)));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const exact = await blobOf(canvas);
  return urlOf(exact.size <= KEPT_BYTES ? exact : await blobOf(canvas, "image/jpeg", 0.9));
}

/** The image of a URL or of bare base64, decoded. */
export async function decoded(text) {
  const picture = new Image();
  picture.src = /^(data|blob):/.test(text) ? text : `data:image/png;base64,${text}`;
  await picture.decode();
  return picture;
}

/** Let the browser keep a file under this name. */
export function keep(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
