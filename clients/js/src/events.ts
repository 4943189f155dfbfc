/** What an engine tells: plain data, so that another tab can take it as it is. */

import type { Line } from './dial.js';
import type { Refusal } from './errors.js';
import type { Entry, Frame, Item, Status } from './frames.js';
import type { OutboxItem } from './outbox.js';
import type { Limits } from './wire.js';

/** What became of a send, edit or delete. */
export interface Sent {
  /** The conversation. */
  c: string;
  seq: number;
  ts: number;
  /** It was in the log before this answer. */
  dup: boolean;
}

/** Why nothing of before holds: another log, another user, or `forget`. */
export type ResetReason = 'epoch' | 'another_user' | 'forgotten';

/** What happens. `entry`: `live` in order, `dup` known from a dup ok only. */
export type EngineEvent =
  | { t: 'line'; line: Line }
  | { t: 'welcome'; user: string; epoch: string; limits: Limits; ts: number }
  | { t: 'reset'; why: ResetReason }
  | { t: 'item'; item: Item; isKept: boolean; after: number | null }
  | { t: 'synced'; since: string | null }
  | { t: 'entry'; entry: Entry; how: 'live' | 'dup' }
  | { t: 'receipt'; c: string; peer: string; from: string; delivered: number; read: number }
  | { t: 'presence'; list: Status[]; isAll: boolean }
  | { t: 'typing'; from: string }
  | { t: 'outbox'; peer: string; items: OutboxItem[] }
  | { t: 'done'; cid: string; peer: string; ok: Sent }
  | { t: 'failed'; cid: string; peer: string; err: Refusal }
  | { t: 'malformed'; frame: Frame };
