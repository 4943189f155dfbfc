/**
 * The parts of `chatd.v1` that are facts and arithmetic: bounds, the close-code table, back-off, text and name rules.
 *
 * Pure: no clock, no randomness, no DOM. `docs/protocol.md` is the source of truth; section numbers refer to it.
 * Neighbours: `client.js` (connection) and `outbox.js` use all of it, the views only the rules of text and names.
 */

/**
 * One line of a conversation's log, as the wire gives it (section 4).
 * @typedef {{c?: string, seq: number, ts: number, from: string, to: string, kind: string, body?: string|null, ref?: number,
 *            rev?: number, edited?: number, deleted?: number, cid?: string}} Entry
 */
/**
 * One conversation as `welcome` and `conversations` list it (section 3).
 * @typedef {{c: string, peer: string, head: number, floor: number, ts: number, delivered: number, read: number,
 *            peer_delivered: number, peer_read: number, unread: number, open: boolean, page?: boolean, reset?: boolean}} Item
 */

export const SUBPROTOCOL = 'chatd.v1';
export const VERSION = 1;

/** What holds until a `welcome` says otherwise. */
export const LIMITS = Object.freeze({
  frame_bytes: 16384, body_bytes: 2048, messages: 10, per_ms: 5000, watch: 200, history: 100, edit_ms: 900000,
});

/** The wire allows 500; fewer keep `hello` small, and what is not named is found by the `since` mark. */
export const CURSORS_MAX = 200;
/** Cursors and the watch list together; leaves room in `frame_bytes` for the token. */
export const HELLO_LIST_BYTES_MAX = 8192;

export const TYPING_EXPIRES_MS = 6000;
export const TYPING_REPEAT_MS = 4000;

/**
 * What to do after a close (section 10).
 *  - `again`    at once (within AT_ONCE_MS), then with back-off
 *  - `backoff`  with back-off from the first try
 *  - `wait`     after `ms`
 *  - `token`    with another token
 *  - `stop`     not by itself: the user, or a new version of this page, must act
 * A code that is not here is treated as a lost connection.
 * @type {Readonly<Record<number, {then: 'again'|'backoff'|'wait'|'token'|'stop', reason: string, ms?: number}>>}
 */
export const CLOSES = Object.freeze({
  1000: { then: 'backoff', reason: 'closed' },
  1001: { then: 'backoff', reason: 'closed' },
  1002: { then: 'stop', reason: 'protocol' },
  1003: { then: 'stop', reason: 'protocol' },
  1007: { then: 'stop', reason: 'protocol' },
  1009: { then: 'stop', reason: 'protocol' },
  1011: { then: 'backoff', reason: 'internal' },
  1012: { then: 'again', reason: 'restart' },
  4000: { then: 'stop', reason: 'protocol' },
  4001: { then: 'token', reason: 'unauthorized' },
  4002: { then: 'token', reason: 'token_expired' },
  4003: { then: 'backoff', reason: 'hello_timeout' },
  4004: { then: 'stop', reason: 'replaced' },
  4005: { then: 'stop', reason: 'too_many_devices' },
  4006: { then: 'again', reason: 'slow_consumer' },
  4007: { then: 'again', reason: 'heartbeat' },
  4008: { then: 'wait', reason: 'rate_limited', ms: 60000 },
  4009: { then: 'backoff', reason: 'overloaded' },
});
const LOST = Object.freeze({ then: /** @type {const} */ ('again'), reason: 'lost' });

/** @param {number} code */
export function afterClose(code) {
  return CLOSES[code] ?? LOST;
}

/** What "at once" means, for jitter: the clients of a node that dies are all cut off at one instant. */
export const AT_ONCE_MS = 250;
export const BACKOFF_FIRST_MS = 500;
export const BACKOFF_MAX_MS = 30000;
/** The life of a connection, from its welcome on, after which the next loss is a first one. A server may close right after each welcome. */
export const SETTLED_MS = 10000;

/**
 * Delays between tries, with full jitter: below 0.25 s, then below 0.5 s, 1 s, 2 s ... 30 s. `reset` when a connection has lived for `SETTLED_MS`.
 * `random` gives [0, 1), as `Math.random` does.
 */
export class Backoff {
  /** @param {() => number} random */
  constructor(random) {
    this.random = random;
    this.tries = 0;
  }

  /**
   * The delay before the next try. @param {boolean} atOnce whether a first try may be at once
   * @param {number} [named] ms that the server named: kept to as it is the first time, as it spreads its clients itself
   */
  next(atOnce, named = 0) {
    if (this.tries === 0 && named > 0) {
      this.tries = 1;
      return named;
    }
    if (this.tries === 0 && !atOnce) this.tries = 1;
    const ceiling = this.tries === 0 ? AT_ONCE_MS : Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (this.tries - 1));
    this.tries += 1;
    return named + Math.floor(this.random() * ceiling);
  }

  reset() {
    this.tries = 0;
  }
}

const encoder = new TextEncoder();

/** UTF-8 bytes of `text`, as the server counts them. @param {string} text */
export function bodyBytes(text) {
  return encoder.encode(text).length;
}

const NOT_ALLOWED = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/**
 * `text` as it may be sent: control characters other than newline and tab go, CR LF becomes LF, lone surrogates become
 * U+FFFD. Nothing else changes: what is stored is what was typed. @param {string} text
 */
export function cleanBody(text) {
  const lines = text.replace(/\r\n?/g, '\n').replace(NOT_ALLOWED, '');
  return lines.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, '\ufffd');
}

/** Who somebody says they are, or null for what names nobody. The server knows whether it is a user id. @param {string} text */
export function cleanName(text) {
  const name = text.normalize('NFC').trim();
  const length = [...name].length;
  return length < 1 || length > 64 || /[\p{Cc}\p{Cs}]/u.test(name) ? null : name;
}

/**
 * The user id of somebody new in what was typed, or null for what surely is none: unseen characters, but for joiners. This browser may know another
 * Unicode than the server, so what it does not know is left to the server. @param {string} text
 */
export function cleanUser(text) {
  const user = cleanName(text);
  if (user === null || /[\p{Co}\p{Zl}\p{Zp}\u2800]|(?! )\p{Zs}|(?![\u200c\u200d])[\p{Cf}\p{DI}]/u.test(user)) return null;
  return user;
}

/** Whether that can name somebody. What a server once named is not judged further. @param {unknown} peer  @returns {peer is string} */
export function isPeer(peer) {
  return typeof peer === 'string' && peer !== '';
}

/** A frame, or null for what must be ignored. @param {unknown} data */
export function parseFrame(data) {
  if (typeof data !== 'string') return null;
  try {
    const frame = JSON.parse(data);
    return frame !== null && typeof frame === 'object' && typeof frame.t === 'string' ? frame : null;
  } catch {
    return null;
  }
}

/**
 * The head of `list` whose JSON stays within `bytes`. @template T
 * @param {T[]} list  @param {number} bytes  @returns {T[]}
 */
export function fitting(list, bytes) {
  let used = 2;
  const kept = [];
  for (const item of list) {
    used += bodyBytes(JSON.stringify(item)) + 1;
    if (used > bytes) break;
    kept.push(item);
  }
  return kept;
}
