/**
 * What the message pane shows, line by line: days, the unread mark, messages with what waits for them in the outbox, and what is
 * still to be sent. Also the one line that a conversation shows in the list.
 *
 *      log.messages() ┐
 *      outbox items   ┼─► rows() ─► day | new | message ... ─► view-pane.js
 *      read cursors   ┘
 *
 * A message's key is its cid where that is known, so that the row of a waiting message is the row of the stored one.
 * Pure.
 */

import { dayOf } from './times.js';

/** Messages of one side closer than this stand as a group. */
const GROUP_MS = 5 * 60000;
/** More lines than that are folded until asked for. */
const LINES_SHOWN = 24;
const JUMBO_CHARS_MAX = 3;
const EMOJI = /^(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\p{Regional_Indicator}|[\ufe0f\u200d])+$/u;

/** @typedef {import('./log.js').Message} Message */
/** @typedef {import('./model.js').Conversation} Conversation */
/** @typedef {import('./outbox.js').OutboxItem} OutboxItem */
/** @typedef {'none'|'sending'|'waiting'|'failed'|'sent'|'delivered'|'read'} Tick */
/** @typedef {{cid: string, what: 'message'|'edit'|'delete', state: 'waiting'|'failed', why: string, canAgain: boolean, canDiscard: boolean}} Fault */
/**
 * @typedef {{type: 'message', key: string, seq: number|null, cid: string|null, own: boolean, ts: number, body: string|null, edited: boolean,
 *   tick: Tick, changing: 'edit'|'delete'|null, fault: Fault|null, canEdit: boolean, canDelete: boolean,
 *   first: boolean, last: boolean, jumbo: boolean, isLong: boolean}} MessageRow
 */
/** @typedef {{type: 'day', key: string, ts: number}|{type: 'new', key: string}|MessageRow} Row */

/** What the codes of docs/protocol.md section 9 mean to somebody who reads them under a message. @type {Readonly<Record<string, string>>} */
const WHY = Object.freeze({
  rate_limited: 'Too many messages at once; it goes out in a moment.',
  overloaded: 'The server is busy; trying again.',
  unavailable: 'The server cannot store it right now; trying again.',
  too_many_conversations: 'Too many new conversations this hour; trying again later.',
  too_long: 'It is too long.',
  too_late: 'It is too late to change this message.',
  deleted: 'The message was deleted before.',
  no_user: 'There is no such user.',
  no_message: 'The message is no longer kept.',
  not_author: 'Only its author can change it.',
  refused: 'The server refused it.',
});

/**
 * @param {Conversation} it  @param {OutboxItem[]} waiting  @param {{user: string, now: number, editMs: number, mark: number|null,
 *   canDiscard: (item: OutboxItem) => boolean}} at  `mark`: the unread mark stands above the peer's first message after that seq
 * @returns {Row[]}
 */
export function rows(it, waiting, { user, now, editMs, mark, canDiscard }) {
  /** @type {Row[]} */
  const out = [];
  const messages = it.log.messages();
  const stored = new Set(messages.map((message) => message.cid));
  const changes = changesOf(waiting, messages);
  let marked = mark === null;
  for (const message of messages) {
    if (!marked && mark !== null && message.from !== user && message.seq > mark) {
      marked = true;
      out.push({ type: 'new', key: 'new' });
    }
    out.push(messageRow(message, it, changes.get(message.seq), { user, now, editMs, canDiscard }));
  }
  for (const item of waiting) {
    if (item.kind === 'message' && !stored.has(item.cid)) out.push(waitingRow(item, canDiscard));
  }
  return group(days(out));
}

/** The last change that waits for each message; a failed one only if none waits. @param {OutboxItem[]} waiting  @param {Message[]} messages */
function changesOf(waiting, messages) {
  /** @type {Map<number, OutboxItem>} */
  const changes = new Map();
  for (const item of waiting) {
    if (item.kind === 'message') continue;
    const ref = item.ref ?? messages.find(({ cid }) => cid !== null && cid === item.refcid)?.seq ?? null;
    if (ref !== null) changes.set(ref, item);
  }
  return changes;
}

/**
 * @param {Message} message  @param {Conversation} it  @param {OutboxItem|undefined} change
 * @param {{user: string, now: number, editMs: number, canDiscard: (item: OutboxItem) => boolean}} at  @returns {MessageRow}
 */
function messageRow(message, it, change, { user, now, editMs, canDiscard }) {
  const own = message.from === user;
  const isChanging = change !== undefined && change.state !== 'failed';
  const changing = isChanging && change.kind !== 'message' ? change.kind : null;
  const body = changing === 'edit' && message.body !== null ? change?.body ?? message.body : message.body;
  const stands = own && body !== null && changing !== 'delete';
  return {
    type: 'message', key: message.cid === null ? `m${message.seq}` : `c${message.cid}`, seq: message.seq, cid: message.cid, own,
    ts: message.ts, body, edited: message.edited !== null && body !== null, tick: own && body !== null ? tickOf(message.seq, it, user) : 'none',
    changing, fault: change && message.body !== null ? faultOf(change, canDiscard) : null,
    canEdit: stands && now - message.ts < editMs, canDelete: stands, first: true, last: true, ...shape(body),
  };
}

/** @param {OutboxItem} item  @param {(item: OutboxItem) => boolean} canDiscard  @returns {MessageRow} */
function waitingRow(item, canDiscard) {
  const fault = faultOf(item, canDiscard);
  return {
    type: 'message', key: `c${item.cid}`, seq: null, cid: item.cid, own: true, ts: item.at, body: item.body, edited: false,
    tick: fault?.state ?? 'sending', changing: null, fault, canEdit: false, canDelete: false, first: true, last: true, ...shape(item.body),
  };
}

/** @param {number} seq  @param {Conversation} it  @param {string} user  @returns {Tick} */
function tickOf(seq, it, user) {
  if (it.peer === user) return 'sent';
  if (seq <= it.peerRead) return 'read';
  return seq <= it.peerDelivered ? 'delivered' : 'sent';
}

/**
 * Null while nothing is to be said of it: on its way, or its outcome is unknown.
 * @param {OutboxItem} item  @param {(item: OutboxItem) => boolean} canDiscard  @returns {Fault|null}
 */
function faultOf(item, canDiscard) {
  const failed = item.state === 'failed';
  if (!failed && (item.code === null || item.code === 'blocked' || item.state === 'sent')) return null;
  const why = WHY[item.code ?? ''] ?? item.msg ?? 'The server refused it.';
  return { cid: item.cid, what: item.kind, state: failed ? 'failed' : 'waiting', why, canAgain: failed, canDiscard: canDiscard(item) };
}

/** @param {string|null} body */
function shape(body) {
  if (body === null) return { jumbo: false, isLong: false };
  const jumbo = body.length <= 32 && EMOJI.test(body) && /\p{Emoji_Presentation}|\ufe0f/u.test(body) && graphemes(body) <= JUMBO_CHARS_MAX;
  return { jumbo, isLong: lineCount(body) > LINES_SHOWN };
}

/** @param {string} text */
function graphemes(text) {
  return typeof Intl.Segmenter === 'function' ? [...new Intl.Segmenter().segment(text)].length : [...text].length;
}

/** @param {string} text */
function lineCount(text) {
  let lines = 1;
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) lines += 1;
  return lines;
}

/** A line above the first message of each day; a message that has waited since an earlier day makes none. @param {Row[]} list @returns {Row[]} */
function days(list) {
  /** @type {Row[]} */
  const out = [];
  let day = NaN;
  list.forEach((row, i) => {
    // The unread mark stands under the day of the message that follows it.
    const dated = row.type === 'new' ? list[i + 1] : row;
    if (dated?.type === 'message' && !(dayOf(dated.ts) <= day)) {
      day = dayOf(dated.ts);
      out.push({ type: 'day', key: `d${day}`, ts: dated.ts });
    }
    out.push(row);
  });
  return out;
}

/** Marks where groups of one side begin and end. @param {Row[]} list */
function group(list) {
  list.forEach((row, i) => {
    const next = list[i + 1];
    if (row.type !== 'message' || next?.type !== 'message') return;
    if (row.own === next.own && next.ts - row.ts < GROUP_MS) row.last = next.first = false;
  });
  return list;
}

/** @typedef {{text: string, kind: 'message'|'deleted'|'none', own: boolean, tick: Tick, ts: number|null}} Preview */

/** The last thing said. @param {Conversation} it  @param {OutboxItem[]} waiting  @param {string} user @returns {Preview} */
export function preview(it, waiting, user) {
  const { last } = it.log;
  const item = waiting.filter(({ kind, cid }) => kind === 'message' && cid !== last?.cid).pop();
  if (item) return { text: item.body ?? '', kind: 'message', own: true, tick: item.state === 'failed' ? 'failed' : 'sending', ts: item.at };
  if (!last) return { text: '', kind: 'none', own: false, tick: 'none', ts: it.c === null ? null : it.ts };
  const own = last.from === user;
  if (last.body === null) return { text: '', kind: 'deleted', own, tick: 'none', ts: last.ts };
  return { text: last.body, kind: 'message', own, tick: own && it.peer !== user ? tickOf(last.seq, it, user) : 'none', ts: last.ts };
}
