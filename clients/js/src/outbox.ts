/**
 * What this device has to say and no answer to yet: one queue per conversation, in the order it was written.
 *
 * Guarantee: an item leaves only by `ok`, by an own entry with its cid, by an error that no retry can heal, or by the
 * user's hand. Until then it is shown as "sending". Section 5 of docs/protocol.md is the contract.
 *
 *      add ─► queued ──next()──► sent ──ok / own entry──► gone
 *               ▲                 │ └──err without retry_ms──► failed ──discard──► gone
 *               └──err + retry_ms, blocked, connection lost──┘
 *
 * Sends are pipelined, `WINDOW_MAX` deep; after a refusal the window is one until something gets through, because the
 * server refuses (`blocked`) whatever follows the refused one. Conversations are keyed by peer: that name holds before
 * the first message and over a change of epoch, which `c` does not.
 *
 * Pure: `now` is an argument; the caller sends what `next` returns and calls again at `wakeAt`.
 */

import type { Refusal } from './errors.js';
import { isPeer } from './frames.js';
import { retryMs } from './wire.js';

export type Kind = 'message' | 'edit' | 'delete';

/** What is to be added. `refcid`: cid of the message that it changes; it holds over a change of epoch, `ref` not. */
export interface Draft {
  peer: string;
  cid: string;
  kind: Kind;
  body: string | null;
  ref: number | null;
  refcid: string | null;
  /** When it was written, by `client.now()`. */
  at: number;
  /** It may have reached the server before, so `retry` goes along. */
  tried: boolean;
  /** The cid is the caller's: it may have been used for something else. */
  isGiven: boolean;
}

export interface OutboxItem extends Draft {
  state: 'queued' | 'sent' | 'failed';
  /** The last answer said that it was not done. */
  refused: boolean;
  code: string | null;
  msg: string | null;
}

interface Queue {
  items: OutboxItem[];
  window: number;
  until: number;
  /** Since a refusal, until all that is on its way has its answer. */
  settling: boolean;
}

export const WINDOW_MAX = 8;
/** Over all conversations. */
export const IN_FLIGHT_MAX = 64;
/** More than that and `add` refuses: nobody types so much into a dead line. What was stored is taken whole. */
export const OUTBOX_ITEMS_MAX = 500;
/** On top of `retry_ms`: a request that comes early doubles the wait. */
const RETRY_MARGIN_MS = 40;
const BLOCKED_PAUSE_MS = 250;
/** The message that it changes is not to be changed, or the text not to be sent. */
const HOPELESS = ['deleted', 'too_late', 'no_message', 'not_author', 'bad_text', 'too_long'];
/** Refusals that say "not done". After the other retryable codes the outcome is unknown. */
const SURELY_NOT_DONE = ['rate_limited', 'overloaded', 'too_many_conversations', 'blocked'];

export class Outbox {
  readonly #queues = new Map<string, Queue>();
  #failed: OutboxItem[] = [];
  /** No send anywhere before this time: the rate limit is the user's, not the conversation's. */
  #until = 0;

  get size(): number {
    return this.all().length;
  }

  /** Null when full, and for what is to nobody. A cid that is here already is the same item. */
  add(draft: Draft): OutboxItem | null {
    const had = this.find(draft.cid);
    if (had) return had;
    if (this.size >= OUTBOX_ITEMS_MAX || !isPeer(draft.peer)) return null;
    const item: OutboxItem = { ...draft, state: 'queued', refused: false, code: null, msg: null };
    this.#queue(item.peer).items.push(item);
    return item;
  }

  #queue(peer: string): Queue {
    const queue = this.#queues.get(peer) ?? { items: [], window: WINDOW_MAX, until: 0, settling: false };
    this.#queues.set(peer, queue);
    return queue;
  }

  /** All, the waiting ones of each conversation in order. */
  all(): OutboxItem[] {
    return [...[...this.#queues.values()].flatMap(({ items }) => items), ...this.#failed];
  }

  /** Everything of a conversation that is still to be shown. */
  of(peer: string): OutboxItem[] {
    return [...this.#failed.filter((item) => item.peer === peer), ...(this.#queues.get(peer)?.items ?? [])];
  }

  find(cid: string): OutboxItem | undefined {
    return this.all().find((item) => item.cid === cid);
  }

  /** The connection is gone: what was on its way has an unknown outcome, and blocks and waits ended with it. */
  disconnected(): void {
    for (const queue of this.#queues.values()) {
      for (const item of queue.items) item.state = 'queued';
      Object.assign(queue, { window: WINDOW_MAX, until: 0, settling: false });
    }
  }

  /** What to send now, in order; each is marked as sent. The caller must send them all. */
  next(now: number): { item: OutboxItem; retry: boolean }[] {
    const out: { item: OutboxItem; retry: boolean }[] = [];
    if (now < this.#until) return out;
    let room = IN_FLIGHT_MAX - this.all().filter(({ state }) => state === 'sent').length;
    for (const queue of this.#queues.values()) {
      if (now < queue.until) continue;
      // What was on its way when one was refused may yet be refused: nothing may overtake it, so its answer comes first.
      if (queue.settling && queue.items.some(({ state }) => state === 'sent')) continue;
      queue.settling = false;
      for (const item of queue.items.slice(0, queue.window)) {
        if (item.state === 'sent') continue;
        if (--room < 0) return out;
        out.push({ item, retry: item.tried });
        Object.assign(item, { state: 'sent', tried: true, refused: false });
      }
    }
    return out;
  }

  /** When `next` can have something again, or null if only an answer can change that. */
  wakeAt(now: number): number | null {
    let at = Infinity;
    for (const { items, until } of this.#queues.values()) {
      if (items.some(({ state }) => state === 'queued')) at = Math.min(at, Math.max(until, this.#until));
    }
    return at === Infinity || at <= now ? null : at;
  }

  /** `ok` came, or an entry of one's own with this cid: it is in the log. */
  settle(cid: string): OutboxItem | undefined {
    const item = this.find(cid);
    if (item) {
      const queue = this.#queues.get(item.peer);
      this.#remove(item);
      // An ok to what was sent before a refusal says nothing of what follows.
      if (queue && !queue.settling) queue.window = Math.min(WINDOW_MAX, queue.window + 1);
    }
    return item;
  }

  /**
   * An `err` came to the item's last try. Says what to do: `again` (nothing; it stays), `failed` (show it), or `skip`
   * (tell the server to give up the cid in `frame.cid`, which this outbox does not hold).
   */
  refuse(item: OutboxItem, frame: Refusal, now: number): 'again' | 'failed' | 'skip' {
    const queue = this.#queues.get(item.peer);
    if (!queue?.items.includes(item)) return 'again';
    item.code = frame.code;
    item.msg = typeof frame.msg === 'string' ? frame.msg : null;
    const wait = retryMs(frame.retry_ms);
    const isBlocked = frame.code === 'blocked';
    if (wait === null && !isBlocked) {
      this.fail(item);
      return 'failed';
    }
    item.refused = SURELY_NOT_DONE.includes(frame.code);
    item.state = 'queued';
    queue.window = 1;
    queue.settling = true;
    if (isBlocked) {
      const at = queue.items.findIndex(({ cid }) => cid === frame.cid);
      if (at >= 0 && at < queue.items.indexOf(item)) return 'again';
      queue.until = Math.max(queue.until, now + BLOCKED_PAUSE_MS);
      return typeof frame.cid === 'string' && at < 0 ? 'skip' : 'again';
    }
    queue.until = now + (wait ?? 0) + RETRY_MARGIN_MS;
    if (frame.code === 'rate_limited') this.#until = Math.max(this.#until, queue.until);
    return 'again';
  }

  /** It cannot succeed: kept, because it holds the user's words. */
  fail(item: OutboxItem): void {
    this.#remove(item);
    item.state = 'failed';
    this.#failed.push(item);
  }

  /** Whether it surely is not in the log: then it can be taken back, and its text changed. */
  canDiscard({ state, refused, tried }: OutboxItem): boolean {
    return state === 'failed' || (state === 'queued' && (refused || !tried));
  }

  /**
   * The user gives it up, if `canDiscard`. Says whether it went, and whether the server must hear of it (`skip`).
   */
  discard(cid: string): 'kept' | 'gone' | 'skip' {
    const item = this.find(cid);
    if (!item || !this.canDiscard(item)) return 'kept';
    const isTold = item.state === 'queued' && item.refused && item.code !== 'blocked';
    const queue = this.#queues.get(item.peer);
    this.#remove(item);
    if (queue && isTold && item.code !== 'rate_limited') queue.until = 0;
    return isTold ? 'skip' : 'gone';
  }

  /**
   * Another epoch: sends stay, by the contract, and so do changes by `refcid`, which name nothing else from now on.
   * Those by `ref` alone cannot succeed: after a restore another message may stand there. Returns those.
   */
  newEpoch(): OutboxItem[] {
    const lost = this.all().filter(({ kind, refcid, state }) => kind !== 'message' && !refcid && state !== 'failed');
    for (const item of this.all()) item.ref = null;
    for (const item of lost) {
      item.code = 'epoch_changed';
      this.fail(item);
    }
    return lost;
  }

  /** Holds these from now on, in this order, each as it is. */
  take(items: readonly OutboxItem[]): void {
    this.#queues.clear();
    this.#failed = items.filter(({ state }) => state === 'failed');
    for (const item of items) if (item.state !== 'failed') this.#queue(item.peer).items.push(item);
  }

  #remove(item: OutboxItem): void {
    const queue = this.#queues.get(item.peer);
    this.#failed = this.#failed.filter((other) => other !== item);
    if (!queue) return;
    queue.items = queue.items.filter((other) => other !== item);
    if (queue.items.length === 0 && queue.until === 0) this.#queues.delete(item.peer);
  }
}

/** Whether a failed one can succeed with another cid: else no second try is to be offered for its words. */
export function canRetry({ state, kind, code, ref, refcid }: OutboxItem): boolean {
  const isNamed = kind === 'message' || ref !== null || refcid !== null;
  return state === 'failed' && isNamed && !HOPELESS.includes(code ?? '');
}
