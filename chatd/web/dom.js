/**
 * The few DOM tools of the views. Text goes in as text nodes only; there is no way here to turn a string into markup.
 */

const SVG = 'http://www.w3.org/2000/svg';
/** @type {Readonly<Record<string, string>>} paths on a grid of 24 */
const ICONS = Object.freeze({
  send: 'M3.5 20.5 21 12 3.5 3.5 3.5 10l11 2-11 2z',
  back: 'M15 4 7 12l8 8',
  edit: 'M4 20l1-4.5L16 4.5l3.5 3.5L8.5 19z M13.5 7l3.5 3.5',
  trash: 'M4.5 7h15 M9.5 7V4.5h5V7 M6.5 7l.8 12.5h9.4L17.5 7 M10.2 10.5v5.5 M13.8 10.5v5.5',
  close: 'M6 6l12 12 M18 6 6 18',
  down: 'M5 9l7 7 7-7',
  search: 'M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13z M15.3 15.3 20 20',
  leave: 'M14 4h5v16h-5 M4 12h11 M11 8l4 4-4 4',
  note: 'M6 3.5h12v17l-6-4-6 4z',
  sending: 'M12 4a8 8 0 1 1 0 16 8 8 0 0 1 0-16z M12 8v4.3l2.8 1.7',
  failed: 'M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z M12 7.8v5 M12 15.6v.6',
  sent: 'M5 12.5l4.5 4.5L19 7.5',
  both: 'M2 12.5l4.5 4.5L16 7.5 M11.6 16.4l.6.6L21.7 7.5',
  chat: 'M6 5h12a2.5 2.5 0 0 1 2.5 2.5v7A2.5 2.5 0 0 1 18 17h-6.5L7 20.5V17H6a2.5 2.5 0 0 1-2.5-2.5v-7A2.5 2.5 0 0 1 6 5z',
});

/**
 * @param {string} tag  @param {Record<string, any>} [facts] `text`, `on` (listeners), `class`; the rest are attributes: false and null are left out
 * @param {...(Node|string|null)} children  @returns {any}
 */
export function el(tag, facts = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name === 'text') node.textContent = value;
    else if (name === 'on') for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else set(node, name, value);
  }
  for (const child of children) if (child !== null) node.append(child);
  return node;
}

/** An attribute, changed only if it differs. @param {Element} node  @param {string} name  @param {string|boolean|number|null} value */
export function set(node, name, value) {
  if (value === null || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else {
    const text = value === true ? '' : String(value);
    if (node.getAttribute(name) !== text) node.setAttribute(name, text);
  }
}

/** @param {Node} node  @param {string} text */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  const path = document.createElementNS(SVG, 'path');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', `icon icon-${name}`);
  svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

/** As much as a badge holds. @param {number} count */
export function countOf(count) {
  return count > 99 ? '99+' : String(count);
}

/** A button that shows an icon and says `label`. @param {string} name  @param {string} label  @param {() => void} act @param {string} [kind] */
export function iconButton(name, label, act, kind = 'plain') {
  return el('button', { type: 'button', class: `icon-button ${kind}`, 'aria-label': label, title: label, on: { click: act } }, icon(name));
}

/** @type {WeakMap<Element, Map<string, any>>} */
const rowsOf = new WeakMap();

/**
 * Makes the children of `parent` show `items`, one node for each key, kept as long as its key is there.
 * @template T
 * @param {Element} parent  @param {T[]} items  @param {(item: T) => string} keyOf
 * @param {(item: T) => any} make  @param {(node: any, item: T) => void} update
 */
export function keyed(parent, items, keyOf, make, update) {
  const had = rowsOf.get(parent) ?? new Map();
  const now = new Map();
  for (const item of items) {
    const key = keyOf(item);
    now.set(key, had.get(key) ?? make(item));
  }
  rowsOf.set(parent, now);
  // What goes, goes first, because then the rest need not be moved.
  for (const [key, node] of had) if (now.get(key) !== node) node.remove();
  let at = parent.firstChild;
  for (const item of items) {
    const node = now.get(keyOf(item));
    update(node, item);
    if (node === at) at = at?.nextSibling ?? null;
    else parent.insertBefore(node, at);
  }
}

/** A round sign for a user: the first letter on a colour of its own. @param {string} user */
export function avatar(user) {
  const node = el('span', { class: 'avatar', 'aria-hidden': 'true' });
  face(node, user, false);
  return node;
}

/** @param {any} node  @param {string} user  @param {boolean} isSelf */
export function face(node, user, isSelf) {
  const key = `${isSelf}/${user}`;
  if (node.faceKey === key) return;
  node.faceKey = key;
  node.className = `avatar hue-${hue(user)}`;
  if (isSelf) node.replaceChildren(icon('note'));
  else say(node, initial(user));
}

/** @param {string} user */
function initial(user) {
  const [first = '?'] = user.match(/[\p{L}\p{N}]/u) ?? [...user];
  return first.toLocaleUpperCase();
}

/** @param {string} user */
function hue(user) {
  let sum = 7;
  for (const char of user) sum = (sum * 31 + (char.codePointAt(0) ?? 0)) % 100003;
  return sum % 12;
}
