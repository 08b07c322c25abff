// Queries and candidates: pictures, scaled down here before they are sent, and texts.

import { plain } from "./dom.js";

const LONGEST_SIDE = 512;
// A picture file within both limits is sent as it is, so that its pixels reach the model unchanged.
const SENT_AS_IS = new Set(["image/png", "image/jpeg", "image/webp"]);
const LARGEST_AS_IS = 400_000;

export class UnreadablePicture extends Error {}

let last = 0;

export function textItem(text) {
  return { key: ++last, text, name: plain(text) };
}

export function linesOf(text) {
  return text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
}

// Makes a candidate of a picture file. Throws UnreadablePicture with the name and the remedy.
export async function pictureItem(file) {
  const name = plain(file.name || "picture").replace(/\.[a-z0-9]{2,5}$/i, "");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new UnreadablePicture(
      `${plain(file.name) || "The picture"} cannot be read by this browser. Save it as PNG or JPEG and add it again.`,
    );
  }
  try {
    const fits = Math.max(bitmap.width, bitmap.height) <= LONGEST_SIDE;
    const asIs = fits && SENT_AS_IS.has(file.type) && file.size <= LARGEST_AS_IS;
    const blob = asIs ? file : await shrunk(bitmap, file.type);
    return { key: ++last, name, url: URL.createObjectURL(blob), image: await dataUri(blob), bytes: blob.size };
  } finally {
    bitmap.close();
  }
}

async function shrunk(bitmap, type) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  // JPEG has no transparency; the other formats may have some.
  const kind = type === "image/jpeg" ? "image/jpeg" : "image/png";
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new UnreadablePicture(
      "The browser could not scale a picture down. Add a smaller one.",
    ))), kind, 0.92);
  });
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new UnreadablePicture("A picture changed while it was read. Add it again."));
    reader.readAsDataURL(blob);
  });
}

export function forget(item) {
  if (item?.url) URL.revokeObjectURL(item.url);
}

// The item as the server reads it.
export function sent(item) {
  return Object.fromEntries(["text", "image"].filter((name) => item[name]).map((name) => [name, item[name]]));
}

export const picturesOf = (transfer) =>
  [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
