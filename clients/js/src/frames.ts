/**
 * What comes from the wire, checked: nothing behind this module meets a value of another type than its own says.
 *
 * Liberal, as the protocol asks: unknown keys, kinds and states pass; a frame without what makes it one is null.
 * A list keeps its good items, and says whether all were good.
 */

/** One line of a conversation's log (section 4). `c` is absent in history. `kind` may be one that is not known here. */
export interface Entry {
  c: string;
  seq: number;
  ts: number;
  from: string;
  to: string;
  kind: string;
  body?: string | null;
  ref?: number;
  rev?: number;
  edited?: number;
  deleted?: number;
  cid?: string;
  /** Of an own change of a message that is not held, in place of `ref`: the cid of that message. */
  refcid?: string;
}

/** One conversation as `welcome` and `conversations` list it (section 3). */
export interface Item {
  c: string;
  peer: string;
  head: number;
  floor: number;
  ts: number;
  delivered: number;
  read: number;
  peer_delivered: number;
  peer_read: number;
  unread: number;
  open: boolean;
  page?: true;
  reset?: true;
}

/** Presence of a user (section 7). */
export interface Status {
  user: string;
  state: string;
  v: number;
  seen?: number;
}

/** Any frame: an object with a type. */
export interface Frame {
  t: string;
  id?: unknown;
  [key: string]: unknown;
}

/** A page of history. */
export interface HistoryPage {
  entries: Entry[];
  /** There are further ones in that direction. */
  more: boolean;
  head: number;
  floor: number;
}

/** Whether a value is what it is to be. */
export type Check = (value: unknown) => boolean;
/** What each key of an object is to be. */
export type Keys = Record<string, Check>;

const text: Check = (value) => typeof value === 'string' && value !== '';
const count: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const seq: Check = (value) => count(value) && value !== 0;
const flag: Check = (value) => typeof value === 'boolean';
const maybe =
  (check: Check): Check =>
  (value) =>
    value === undefined || check(value);

const ENTRY: Keys = {
  seq,
  ts: count,
  from: text,
  to: text,
  kind: text,
  body: (value) => value == null || typeof value === 'string',
  ref: maybe(seq),
  rev: maybe(seq),
  edited: maybe(count),
  deleted: maybe(count),
  cid: maybe(text),
};
const ITEM: Keys = {
  c: text,
  peer: text,
  head: count,
  floor: count,
  ts: count,
  delivered: count,
  read: count,
  peer_delivered: count,
  peer_read: count,
  unread: count,
  open: flag,
};
const STATUS: Keys = { user: text, state: text, v: count, seen: maybe(count) };

/** Whether it is an object with such keys, at least. */
export function fits(value: unknown, keys: Keys): boolean {
  if (value === null || typeof value !== 'object') return false;
  for (const key in keys) if (!keys[key]?.((value as Frame)[key])) return false;
  return true;
}

/** A frame, or null for what must be ignored. */
export function parseFrame(data: unknown): Frame | null {
  try {
    const frame: unknown = JSON.parse(data as string);
    return fits(frame, { t: text }) ? (frame as Frame) : null;
  } catch {
    return null;
  }
}

/** An entry, of conversation `c` where it does not say so itself; null if it is none. */
export function entryOf(value: unknown, c?: string): Entry | null {
  if (!fits(value, ENTRY)) return null;
  const entry = value as Entry;
  const named = c === undefined ? entry : { ...entry, c };
  const isMessage = entry.kind === 'message';
  if (!text(named.c) || (isMessage && entry.body === undefined) || (isChange(entry) && !entry.ref)) return null;
  return named;
}

/** Whether it changes a message. */
export function isChange({ kind }: { kind: string }): boolean {
  return kind === 'edit' || kind === 'delete';
}

/** The good items of a list, and whether that is all of it. */
export function listOf<T>(value: unknown, one: (item: unknown) => T | null): { list: T[]; isWhole: boolean } {
  const items = Array.isArray(value) ? value : [];
  const list = items.map(one).filter((item) => item !== null) as T[];
  return { list, isWhole: list.length === items.length && (value === undefined || Array.isArray(value)) };
}

export function itemOf(value: unknown): Item | null {
  return fits(value, ITEM) ? (value as Item) : null;
}

export function statusOf(value: unknown): Status | null {
  return fits(value, STATUS) ? (value as Status) : null;
}

/** What an `ok` to a send must say. */
export function isStored(value: unknown): value is { c: string; seq: number; ts: number; dup?: unknown } {
  return fits(value, { c: text, seq, ts: count });
}

/** The keys of the first page of a welcome that nothing works without. */
export function isWelcome(value: unknown): value is { user: string; epoch: string; ts: number } {
  return fits(value, { user: text, epoch: text, ts: count });
}

/** A receipt, or an `ok` to a cursor with its conversation. */
export function isReceipt(value: unknown): value is { c: string; from: string; delivered: number; read: number } {
  return fits(value, { c: text, from: text, delivered: count, read: count });
}

/** Whether a value is a number that counts something. */
export const isCount = count as (value: unknown) => value is number;
/** Whether it can name somebody. What a server once named is not judged further. */
export const isPeer = text as (value: unknown) => value is string;
