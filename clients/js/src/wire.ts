/**
 * The parts of `chatd.v1` that are facts and arithmetic: bounds, close codes, back-off, rules of text and names.
 *
 * Pure: no clock, no randomness. `docs/protocol.md` is the source of truth; section numbers refer to it.
 */

export const SUBPROTOCOL = 'chatd.v1';

/** The limits that a `welcome` names. */
export interface Limits {
  frame_bytes: number;
  body_bytes: number;
  messages: number;
  per_ms: number;
  watch: number;
  history: number;
  edit_ms: number;
}

/** What holds until a `welcome` says otherwise. */
export const LIMITS: Readonly<Limits> = {
  frame_bytes: 16384,
  body_bytes: 2048,
  messages: 10,
  per_ms: 5000,
  watch: 200,
  history: 100,
  edit_ms: 900000,
};

/** The wire allows 500; fewer keep `hello` small, and what is not named is found by the `since` mark. */
export const CURSORS_MAX = 200;
/** Cursors and the watch list together; leaves room in `frame_bytes` for the token. */
export const HELLO_LIST_BYTES_MAX = 8192;

/** A typing sign ends after this time; while typing goes on it is repeated each `TYPING_REPEAT_MS`. */
export const TYPING_EXPIRES_MS = 6000;
export const TYPING_REPEAT_MS = 4000;

/** `too_many_conversations` may ask for an hour. A server that names more is not believed. */
export const RETRY_MS_MAX = 3600000;
/** The same for what concerns a whole connection, and for cursors. */
export const RECONNECT_MS_MAX = 300000;

/** What nobody waits for (cursors, the watch list) is not said again sooner, whatever the server names. */
export const QUIET_RETRY_MS_MIN = 250;

/** `retry_ms` of a frame within bounds, or null for an error that another try cannot heal. */
export function retryMs(value: unknown, max = RETRY_MS_MAX, min = 0): number | null {
  return typeof value === 'number' ? Math.min(Math.max(min, value), max) : null;
}

/**
 * What to do after a close (section 10): `again` at once (within AT_ONCE_MS), then with back-off; `backoff` from the
 * first try; `token`: with another one; `wait` for `LIMITED_MS`; `end`: not without the application or a new version.
 */
export type AfterClose = readonly [then: 'again' | 'backoff' | 'wait' | 'token' | 'end', reason: string];

const CLOSED: AfterClose = ['backoff', 'closed'];
const PROTOCOL: AfterClose = ['end', 'protocol'];
const CLOSES: Readonly<Record<number, AfterClose>> = {
  1000: CLOSED,
  1001: CLOSED,
  1002: PROTOCOL,
  1003: PROTOCOL,
  1007: PROTOCOL,
  1009: PROTOCOL,
  1011: ['backoff', 'internal'],
  1012: ['again', 'restart'],
  4000: PROTOCOL,
  4001: ['token', 'unauthorized'],
  4002: ['token', 'token_expired'],
  4003: ['backoff', 'hello_timeout'],
  4004: ['end', 'replaced'],
  4005: ['end', 'too_many_devices'],
  4006: ['again', 'slow_consumer'],
  4007: ['again', 'heartbeat'],
  4008: ['wait', 'rate_limited'],
  4009: ['backoff', 'overloaded'],
};

/** The wait after 4008. */
export const LIMITED_MS = 60000;

/** A code that is not in the table is treated as a lost connection. */
export function afterClose(code: number): AfterClose {
  return CLOSES[code] ?? ['again', 'lost'];
}

/** What "at once" means, for jitter: the clients of a node that dies are all cut off at one instant. */
export const AT_ONCE_MS = 250;
export const BACKOFF_FIRST_MS = 500;
export const BACKOFF_MAX_MS = 30000;
/** The life of a connection after which the next loss is a first one: a server may close right after each welcome. */
export const SETTLED_MS = 10000;

/** Delays between tries, with full jitter: below 0.25 s, then below 0.5 s, 1 s, 2 s ... 30 s. */
export class Backoff {
  tries = 0;
  readonly #random: () => number;

  /** `random` gives [0, 1), as `Math.random` does. */
  constructor(random: () => number) {
    this.#random = random;
  }

  /**
   * The delay before the next try. `named`: ms that the server named; kept to as it is the first time, as the server
   * spreads its clients itself.
   */
  next(atOnce: boolean, named = 0): number {
    if (this.tries === 0 && named > 0) {
      this.tries = 1;
      return named;
    }
    if (this.tries === 0 && !atOnce) this.tries = 1;
    const ceiling = this.tries === 0 ? AT_ONCE_MS : Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (this.tries - 1));
    this.tries += 1;
    return named + Math.floor(this.#random() * ceiling);
  }
}

const encoder = new TextEncoder();

/** UTF-8 bytes of `text`, as the server counts them. */
export function bodyBytes(text: string): number {
  return encoder.encode(text).length;
}

const NOT_ALLOWED = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
const LONE_SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/**
 * `text` as it may be sent: control characters other than newline and tab go, CR LF becomes LF, lone surrogates become
 * U+FFFD. Nothing else changes: what is stored is what was typed.
 */
export function cleanBody(text: string): string {
  return text.replace(/\r\n?/g, '\n').replace(NOT_ALLOWED, '').replace(LONE_SURROGATE, '\ufffd');
}

/** Who somebody says they are, or null for what names nobody. The server knows whether it is a user id. */
export function cleanName(text: string): string | null {
  const name = text.normalize('NFC').trim();
  const length = [...name].length;
  return length < 1 || length > 64 || /[\p{Cc}\p{Cs}]/u.test(name) ? null : name;
}

/**
 * The user id of somebody new in what was typed, or null for what surely is none: unseen characters, but for joiners.
 * This machine may know another Unicode than the server, so what it does not know is left to the server.
 */
export function cleanUser(text: string): string | null {
  const user = cleanName(text);
  const unseen = /[\p{Co}\p{Zl}\p{Zp}\u2800]|(?! )\p{Zs}|(?![\u200c\u200d])[\p{Cf}\p{DI}]/u;
  return user === null || unseen.test(user) ? null : user;
}

/** The head of `list` whose JSON stays within `bytes`. */
export function fitting<T>(list: readonly T[], bytes: number): T[] {
  let used = 2;
  const kept: T[] = [];
  for (const item of list) {
    used += bodyBytes(JSON.stringify(item)) + 1;
    if (used > bytes) break;
    kept.push(item);
  }
  return kept;
}
