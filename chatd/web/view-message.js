/**
 * The lines of the message pane as nodes: day, unread mark, message. `rows.js` says what is on them.
 */

import { el, icon, iconButton, say, set } from './dom.js';
import { clock, dayName, fullTime } from './times.js';

/** @typedef {import('./rows.js').Row} Row */
/** @typedef {import('./rows.js').MessageRow} MessageRow */
/** @typedef {{onEdit(row: MessageRow): void, onDelete(row: MessageRow): void, onAgain(cid: string): void, onDiscard(cid: string): void}} Acts */

/** @type {Readonly<Record<string, string>>} */
const TICK_WORDS = Object.freeze({
  sending: 'Sending', waiting: 'Waiting to be sent', failed: 'Not sent', sent: 'Sent', delivered: 'Delivered', read: 'Read',
});
/** A message that begins in a script from right to left is laid out so as a whole. */
const RTL = /^[^\p{L}]*[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;
const FAILED = Object.freeze({ message: 'Not sent.', edit: 'Not changed.', delete: 'Not deleted.' });

/** @param {Row} row  @param {Acts} acts @returns {any} */
export function makeRow(row, acts) {
  if (row.type === 'day') return el('li', { class: 'day', role: 'separator' }, el('span'));
  if (row.type === 'new') return el('li', { class: 'new', role: 'separator' }, el('span', { text: 'New messages' }));
  /** @type {Record<string, any>} */
  const parts = {
    who: el('span', { class: 'vh' }), text: el('div', { class: 'text', dir: 'auto' }),
    fold: el('button', { type: 'button', class: 'fold' }), edited: el('span', { class: 'edited' }),
    time: el('time'), tick: el('span', { class: 'tick', role: 'img' }), actions: el('div', { class: 'actions' }),
    fault: el('div', { class: 'fault' }),
  };
  const node = el('li', { tabindex: -1 },
    parts.bubble = el('div', { class: 'bubble' }, parts.who, parts.text, parts.fold,
      el('span', { class: 'meta' }, parts.edited, parts.time, parts.tick), parts.actions), parts.fault);
  Object.assign(node, { parts, row: null, isUnfolded: false, acts });
  parts.fold.addEventListener('click', () => {
    node.isUnfolded = !node.isUnfolded;
    fold(node);
  });
  return node;
}

/** @param {any} node  @param {Row} row  @param {{peer: string, now: number}} at */
export function updateRow(node, row, { peer, now }) {
  if (row.type === 'day') say(node.firstChild, dayName(row.ts, now));
  if (row.type !== 'message' || isSame(node.row, row)) return;
  const before = node.row;
  node.row = row;
  const { parts } = node;
  const kind = row.body === null ? ' gone' : row.jumbo ? ' jumbo' : '';
  set(node, 'class', `message ${row.own ? 'own' : 'theirs'}${row.first ? ' first' : ''}${row.last ? ' last' : ''}${kind}`
    + `${row.changing ? ' changing' : ''}${row.tick === 'failed' ? ' failed' : ''}`);
  say(parts.who, row.own ? 'You: ' : `${peer}: `);
  say(parts.text, row.body ?? (row.own ? 'You deleted this message' : 'This message was deleted'));
  set(parts.bubble, 'dir', row.body !== null && RTL.test(row.body) ? 'rtl' : 'ltr');
  fold(node);
  say(parts.edited, row.changing === 'delete' ? 'deleting…' : row.changing === 'edit' ? 'saving…' : row.edited ? 'edited' : '');
  say(parts.time, clock(row.ts));
  set(parts.time, 'title', fullTime(row.ts));
  if (before?.tick !== row.tick) showTick(parts.tick, row.tick);
  if (before?.canEdit !== row.canEdit || before?.canDelete !== row.canDelete) showActions(node);
  if (before?.fault || row.fault) showFault(node);
}

/** @param {any} a  @param {any} b */
function isSame(a, b) {
  if (a === null) return false;
  return Object.keys(b).every((key) => (key === 'fault' ? JSON.stringify(a.fault) === JSON.stringify(b.fault) : a[key] === b[key]));
}

/** @param {any} node */
function fold({ parts, row, isUnfolded }) {
  const isFolded = row.isLong && !isUnfolded;
  set(parts.text, 'class', isFolded ? 'text folded' : 'text');
  parts.fold.hidden = !row.isLong;
  set(parts.fold, 'aria-expanded', String(!isFolded));
  say(parts.fold, isFolded ? 'Show all of it' : 'Show less');
}

/** @param {any} node  @param {string} tick */
function showTick(node, tick) {
  set(node, 'class', `tick ${tick}`);
  set(node, 'aria-label', TICK_WORDS[tick] ?? null);
  set(node, 'title', TICK_WORDS[tick] ?? null);
  set(node, 'role', tick === 'none' ? null : 'img');
  const name = { none: null, delivered: 'both', read: 'both', waiting: 'sending' }[tick];
  node.replaceChildren(...(name === null ? [] : [icon(name ?? tick)]));
}

/** @param {any} node */
function showActions(node) {
  const { parts, row, acts } = node;
  const buttons = [];
  if (row.canEdit) buttons.push(iconButton('edit', 'Edit', () => acts.onEdit(node.row)));
  if (row.canDelete) buttons.push(iconButton('trash', 'Delete', () => acts.onDelete(node.row)));
  parts.actions.replaceChildren(...buttons);
}

/** @param {any} node */
function showFault({ parts, row, acts }) {
  const { fault } = row;
  parts.fault.replaceChildren();
  if (fault === null) return;
  set(parts.fault, 'class', `fault ${fault.state}`);
  parts.fault.append(el('span', { text: `${fault.state === 'failed' ? `${FAILED[fault.what]} ` : ''}${fault.why}` }));
  if (fault.canAgain) parts.fault.append(el('button', { type: 'button', text: 'Try again', on: { click: () => acts.onAgain(fault.cid) } }));
  if (fault.canDiscard) parts.fault.append(el('button', { type: 'button', text: 'Discard', on: { click: () => acts.onDiscard(fault.cid) } }));
}
