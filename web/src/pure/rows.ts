/**
 * What the log shows, row by row: a message, and above it the day and the line above the new messages where they stand.
 * Also what is said beside a message that waits, and the one line of a conversation in the list. Pure.
 */

import type { ConversationView, Message, Waiting } from '@chatd/client';
import { isSeen } from './text';
import { dayOf } from './times';

type Draft = { -readonly [K in keyof Row]: Row[K] };

/** Messages of one side closer than this stand as a group. */
const GROUP_MS = 5 * 60000;

export interface Row {
  readonly key: string;
  readonly message: Message;
  readonly own: boolean;
  /** The day begins here. */
  readonly day: number | null;
  /** The line above the new messages stands above it. */
  readonly isFirstNew: boolean;
  /** First, last of its group. */
  readonly first: boolean;
  readonly last: boolean;
}

/**
 * `mark`: the line stands above the peer's first message after that seq. `old`: this user's rows before; one that is the
 * same is given again, so that it is not drawn again, and what comes at the end costs no look at thousands before it.
 */
export function rows(
  messages: readonly Message[],
  user: string,
  mark: number | null,
  old: readonly Row[] = [],
): readonly Row[] {
  const isNew = ({ from, seq }: Message) => mark !== null && from !== user && seq !== null && seq > mark;
  const marked = mark === null ? -1 : messages.findIndex(isNew);
  const kept = keptOf(messages, old, marked);
  const out = old.slice(0, Math.max(0, kept - 1));
  const had = finder(old);
  const last = old[kept - 1];
  let before: Draft | null = last ? { ...last } : null; // the row before, whose `last` depends on this one
  let { day, dayEnd } = lastDay(out, last);
  const add = (row: Draft) => {
    const known = had(row.key, out.length);
    out.push(known && isSame(known, row) ? known : { ...row });
  };
  for (let i = kept; i < messages.length; i += 1) {
    const message = messages[i] as Message;
    const own = message.from === user;
    // A message that has waited since an earlier day begins no day.
    const isNewDay = message.ts >= dayEnd;
    if (isNewDay) [day, dayEnd] = [dayOf(message.ts), nextDay(message.ts)];
    const isClose = before !== null && message.ts - before.message.ts < GROUP_MS;
    const isNext: boolean = isClose && before?.own === own && !isNewDay && i !== marked;
    if (before) add(Object.assign(before, { last: !isNext }));
    const { key } = message;
    before = { key, message, own, day: isNewDay ? day : null, isFirstNew: i === marked, first: !isNext, last: true };
  }
  if (before) add(Object.assign(before, { last: true }));
  return out.length === old.length && out.every((row, i) => row === old[i]) ? old : out;
}

/** How many rows at the start are of the same messages, with the line above none or the same one of them. */
function keptOf(messages: readonly Message[], old: readonly Row[], marked: number): number {
  let kept = 0;
  for (const { message, isFirstNew } of old) {
    if (message !== messages[kept] || isFirstNew !== (kept === marked)) break;
    kept += 1;
  }
  return kept;
}

/** The day that these rows end in. Asked of the calendar once a day, because a log has thousands of messages. */
function lastDay(all: readonly Row[], last: Row | undefined): { day: number; dayEnd: number } {
  const first = last && last.day !== null ? last : all.findLast(({ day }) => day !== null);
  if (first === undefined || first.day === null) return { day: -Infinity, dayEnd: -Infinity };
  return { day: first.day, dayEnd: nextDay(first.message.ts) };
}

/** Finds a row by its key, near the place where the one before was found. */
function finder(old: readonly Row[]): (key: string, at: number) => Row | undefined {
  let shift = 0;
  let places: Map<string, number> | null = null;
  return (key, at) => {
    const near = old[at + shift];
    if (near?.key === key) return near;
    if (at + shift >= old.length) return undefined; // a new one at the end
    places ??= new Map(old.map((row, i) => [row.key, i]));
    const place = places.get(key);
    if (place !== undefined) shift = place - at;
    return place === undefined ? undefined : old[place];
  };
}

function isSame(a: Row, b: Row): boolean {
  const isSamePlace = a.day === b.day && a.isFirstNew === b.isFirstNew && a.first === b.first && a.last === b.last;
  return isSamePlace && a.message === b.message && a.own === b.own;
}

function nextDay(ts: number): number {
  const date = new Date(ts);
  return new Date(date.getFullYear(), date.getMonth(), date.getDate() + 1).getTime();
}

/** What the codes of docs/protocol.md section 9 mean to somebody who reads them under a message. */
const WHY: Readonly<Record<string, string>> = {
  rate_limited: 'Too many messages at once; it goes out in a moment.',
  overloaded: 'The server is busy; trying again.',
  unavailable: 'The server cannot store it right now; trying again.',
  too_many_conversations: 'Too many new conversations this hour; trying again later.',
  too_long: 'It is too long.',
  bad_text: 'It has characters that cannot be sent.',
  too_late: 'It is too late to change this message.',
  deleted: 'The message was deleted before.',
  no_user: 'There is no such user.',
  no_message: 'The message is no longer kept.',
  not_author: 'Only its author can change it.',
  refused: 'The server refused it.',
  epoch_changed: 'The server was restored from a backup, and that message is gone.',
};
/** Another try of these has the same end. */
const FOR_GOOD = ['too_late', 'deleted', 'no_message', 'not_author', 'too_long', 'bad_text', 'epoch_changed'];
const FAILED = { message: 'Not sent.', edit: 'Not changed.', delete: 'Not deleted.' };

/** What is said beside something that waits. */
export interface Fault {
  readonly text: string;
  readonly isFailed: boolean;
  readonly canAgain: boolean;
  readonly canDiscard: boolean;
  /** Words that are nowhere else: they can be taken into the draft. */
  readonly words: string | null;
}

/** Null while nothing is to be said of it: on its way, or its outcome is unknown. */
export function faultOf({ kind, state, code, body, canCancel }: Waiting): Fault | null {
  const isFailed = state === 'failed';
  if (!isFailed && (code === null || code === 'blocked')) return null;
  const why = WHY[code ?? ''] ?? 'The server refused it.';
  const isForGood = FOR_GOOD.includes(code ?? '');
  return {
    text: isFailed ? `${FAILED[kind]} ${why}` : why,
    isFailed,
    canAgain: isFailed && !isForGood,
    canDiscard: canCancel,
    words: isFailed && kind !== 'delete' && (kind === 'edit' || isForGood) ? body : null,
  };
}

export type Tick = 'none' | 'sending' | 'waiting' | 'failed' | 'sent' | 'delivered' | 'read';

/** How far an own message has got. Notes to oneself are read as they are written. */
export function tickOf({ state, waiting, seq, body }: Message, isSelf: boolean): Tick {
  if (state === 'received' || body === null) return 'none';
  if (seq === null)
    return state === 'sending' && waiting?.code && waiting.code !== 'blocked' ? 'waiting' : (state as Tick);
  return isSelf ? 'sent' : (state as Tick);
}

export interface Preview {
  readonly text: string;
  readonly kind: 'message' | 'deleted' | 'none';
  readonly tick: Tick;
  readonly ts: number | null;
}

const PREVIEW_CHARS = 200;

/** The last thing said. */
export function preview({ last, c, ts, peer }: ConversationView, user: string): Preview {
  if (!last) return { text: '', kind: 'none', tick: 'none', ts: c === null ? null : ts };
  const own = last.from === user;
  const tick = last.seq !== null && peer === user ? 'none' : tickOf(last, false);
  if (last.body === null) {
    return { text: own ? 'You deleted a message' : 'Message deleted', kind: 'deleted', tick: 'none', ts: last.ts };
  }
  const text = isSeen(last.body) ? last.body : '(nothing to be seen)';
  return { text: text.slice(0, PREVIEW_CHARS).replace(/\s+/g, ' '), kind: 'message', tick, ts: last.ts };
}
