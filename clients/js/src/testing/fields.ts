/**
 * The keys of requests, checked as the server checks them (sections 2 and 9 of docs/protocol.md): each function gives a
 * value or throws the `err` that the server would answer.
 */
import { isNewName, isOldName } from './names.js';

/** A frame of any kind. */
export interface AnyFrame {
  [key: string]: unknown;
}

/** What becomes an `err` frame. */
export class Refused extends Error {
  /** The keys of the `err` frame. */
  readonly frame: AnyFrame;

  /** With the keys that belong to this code. */
  constructor(code: string, keys: AnyFrame = {}) {
    super(code);
    this.frame = { t: 'err', code, msg: code.replaceAll('_', ' '), ...keys };
  }
}

const CID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const DEVICE = /^[A-Za-z0-9._:-]{1,64}$/;
const NO_TEXT =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;

const badField = (field: string): Refused => new Refused('bad_field', { field });
const isAbsent = (value: unknown): value is null | undefined => value === undefined || value === null;

/** Bytes of UTF-8. */
export const bytes = (text: string): number => new TextEncoder().encode(text).length;

/** A whole number from `min` to 2^53 - 1, or its refusal. */
export function seq(frame: AnyFrame, key: string, min = 1): number {
  const value = frame[key];
  if (typeof value !== 'number' || (!Number.isInteger(value) && Number.isFinite(value))) throw badField(key);
  if (value < min || value > Number.MAX_SAFE_INTEGER) throw new Refused('bad_seq', { field: key });
  return value;
}

/** The same; null counts as absent. */
export function optionalSeq(frame: AnyFrame, key: string, min = 1): number | undefined {
  return isAbsent(frame[key]) ? undefined : seq(frame, key, min);
}

/** The id of what a client adds, in small letters. */
export function cid(frame: AnyFrame, key = 'cid'): string {
  const value = frame[key];
  const small = typeof value === 'string' ? value.toLowerCase() : '';
  if (!CID.test(small)) throw badField(key);
  return small;
}

/** The same; null counts as absent. */
export function optionalCid(frame: AnyFrame, key: string): string | undefined {
  return isAbsent(frame[key]) ? undefined : cid(frame, key);
}

/** A text of 1 to `bytesMax` bytes. */
export function body(frame: AnyFrame, bytesMax: number): string {
  const value = frame.body;
  if (typeof value !== 'string') throw badField('body');
  if (value === '' || NO_TEXT.test(value)) throw new Refused('bad_text');
  if (bytes(value) > bytesMax) throw new Refused('too_long');
  return value;
}

/** `retry` is a boolean where it is there. */
export function retry(frame: AnyFrame): boolean {
  if (frame.retry !== undefined && typeof frame.retry !== 'boolean') throw badField('retry');
  return frame.retry === true;
}

/** How many at most, of history and conversations. */
export function limit(frame: AnyFrame, most: number): number {
  const value = frame.limit === undefined ? 50 : frame.limit;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > most) throw badField('limit');
  return value;
}

/** What the conversation is named by: exactly one of the two. */
export function where(frame: AnyFrame): { c: string } | { to: string } {
  const { c, to } = frame;
  if (isAbsent(c) === isAbsent(to)) throw badField('c');
  if (!isAbsent(c)) {
    if (typeof c !== 'string') throw badField('c');
    return { c };
  }
  if (!isOldName(to)) throw badField('to');
  return { to };
}

/** A list of users; of a request that is not `hello` also by the rule for new names, but for those that are `known`. */
export function users(frame: AnyFrame, key: string, most: number, known?: (user: string) => boolean): string[] {
  const value = frame[key];
  const isGood = (user: unknown): boolean => isOldName(user) && (known === undefined || known(user) || isNewName(user));
  if (!Array.isArray(value) || value.length > most || !value.every(isGood)) throw badField(key);
  return [...new Set<string>(value)];
}

/** What somebody says of their device. */
export function state(frame: AnyFrame): 'online' | 'away' {
  if (frame.state !== 'online' && frame.state !== 'away') throw badField('state');
  return frame.state;
}

/** A token: any text that is not empty. */
export function token(frame: AnyFrame): string {
  if (typeof frame.token !== 'string' || frame.token === '') throw badField('token');
  return frame.token;
}

/** A text that a server gave, or nothing. `shape`: what it gave looks like this. */
export function mark(frame: AnyFrame, key: string, shape: RegExp): string | undefined {
  const value = frame[key];
  if (isAbsent(value)) return undefined;
  if (typeof value !== 'string' || !shape.test(value)) throw badField(key);
  return value;
}

/** What a `hello` may hold. */
export interface Hello {
  token: string;
  device: string;
  epoch: string | undefined;
  cursors: Map<string, number>;
  since: string | undefined;
  watch: string[];
  state: 'online' | 'away';
}

/** A `hello` of this version, key by key. */
export function hello(frame: AnyFrame, watchMax: number): Hello {
  if (frame.v !== 1) throw new Refused('bad_version');
  const given = { token: token(frame), device: frame.device };
  if (typeof given.device !== 'string' || !DEVICE.test(given.device)) throw badField('device');
  const { features = [], cursors = {} } = frame;
  if (!Array.isArray(features) || features.length > 32 || !features.every((one) => typeof one === 'string'))
    throw badField('features');
  if (typeof cursors !== 'object' || cursors === null || Array.isArray(cursors)) throw badField('cursors');
  const held = Object.entries(cursors);
  const isCursor = (k: unknown): k is number => typeof k === 'number' && Number.isSafeInteger(k) && k >= 0;
  if (held.length > 500 || !held.every(([, k]) => isCursor(k))) throw badField('cursors');
  return {
    token: given.token,
    device: given.device,
    epoch: mark(frame, 'epoch', /^.{1,64}$/s),
    cursors: new Map(held as Array<[string, number]>),
    since: mark(frame, 'since', /^\d+$/),
    watch: isAbsent(frame.watch) ? [] : users(frame, 'watch', watchMax),
    state: frame.state === undefined ? 'online' : state(frame),
  };
}
