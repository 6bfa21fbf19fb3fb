// Small helpers around the document.

export const find = (id) => document.getElementById(id);

/** A new element; attributes that begin with "on" are listeners, null and false ones are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** One of the icons in the page's sprite. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("class", "icon");
  picture.append(document.createElementNS(space, "use"));
  picture.firstChild.setAttribute("href", `#i-${name}`);
  return picture;
}

/** Whether the device is pointed at with a finger. */
export const byFinger = () => matchMedia("(pointer: coarse)").matches;

/** Scroll to an element; at once for those who do not like motion. */
export function reveal(element, block = "nearest") {
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth";
  element.scrollIntoView({ block, behavior });
}

/** Announce a text to screen readers. */
export function say(text) {
  find("said").textContent = text;
}

/** Whether a key pressed there is meant for a text. */
export function isText(target) {
  return target instanceof HTMLTextAreaElement || (target instanceof HTMLInputElement && !["range", "checkbox"].includes(target.type));
}

/** A canvas of this size that lies nowhere. */
export function sheet(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}
