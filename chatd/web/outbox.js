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
 * server refuses (`blocked`) whatever follows the refused one. Conversations are keyed by peer: that name holds before the
 * first message and over a change of epoch, which `c` does not.
 *
 * Pure: `now` is an argument; the caller sends what `next` returns and calls again at `wakeAt`.
 */

import { isPeer } from './wire.js';

/**
 * @typedef {{peer: string, cid: string, kind: 'message'|'edit'|'delete', body: string|null, ref: number|null, refcid: string|null, at: number,
 *            tried: boolean, state: 'queued'|'sent'|'failed', refused: boolean, code: string|null, msg: string|null}} OutboxItem
 * `refcid`: cid of the message that it changes, which holds over a change of epoch, as `ref` does not. `tried`: may have reached the server before (so `retry` goes along). `refused`: the last answer said that it was not done.
 */

export const WINDOW_MAX = 8;
/** More than that and `add` refuses: nobody types so much into a dead line. */
export const OUTBOX_ITEMS_MAX = 500;
/** On top of `retry_ms`: a request that comes early doubles the wait. */
const RETRY_MARGIN_MS = 40;
const BLOCKED_PAUSE_MS = 250;
/** Refusals that say "not done". After the other retryable codes the outcome is unknown. */
const SURELY_NOT_DONE = new Set(['rate_limited', 'overloaded', 'too_many_conversations', 'blocked']);

export class Outbox {
  constructor() {
    /**
     * By peer. `settling`: since a refusal, until all that is on its way has its answer.
     * @type {Map<string, {items: OutboxItem[], window: number, until: number, settling: boolean}>}
     */
    this.queues = new Map();
    /** @type {OutboxItem[]} */
    this.failed = [];
    /** No send anywhere before this time: the rate limit is the user's, not the conversation's. */
    this.until = 0;
    this.size = 0;
  }

  /**
   * @param {{peer: string, cid: string, kind: 'message'|'edit'|'delete', body?: string|null, ref?: number|null, refcid?: string|null, at: number, tried?: boolean}} what
   * @returns {OutboxItem|null} null when full, and for what is to nobody
   */
  add({ peer, cid, kind, body = null, ref = null, refcid = null, at, tried = false }) {
    if (this.size >= OUTBOX_ITEMS_MAX || !isPeer(peer)) return null;
    const item = { peer, cid, kind, body, ref, refcid, at, tried, state: /** @type {const} */ ('queued'), refused: false, code: null, msg: null };
    const queue = this.queues.get(peer) ?? { items: [], window: WINDOW_MAX, until: 0, settling: false };
    this.queues.set(peer, queue);
    queue.items.push(item);
    this.size += 1;
    return item;
  }

  /** Everything of a conversation that is still to be shown. @param {string} peer @returns {OutboxItem[]} */
  of(peer) {
    return [...this.failed.filter((item) => item.peer === peer), ...(this.queues.get(peer)?.items ?? [])];
  }

  /** @param {string} cid @returns {OutboxItem|undefined} */
  find(cid) {
    for (const { items } of this.queues.values()) {
      const found = items.find((item) => item.cid === cid);
      if (found) return found;
    }
    return this.failed.find((item) => item.cid === cid);
  }

  /** The connection is gone: what was on its way has an unknown outcome, and blocks and waits ended with it. */
  disconnected() {
    for (const queue of this.queues.values()) {
      for (const item of queue.items) item.state = 'queued';
      queue.window = WINDOW_MAX;
      queue.until = 0;
      queue.settling = false;
    }
  }

  /**
   * What to send now, in order; each is marked as sent. The caller must send them all.
   * @param {number} now  @returns {{item: OutboxItem, retry: boolean}[]}
   */
  next(now) {
    const out = [];
    if (now < this.until) return out;
    for (const queue of this.queues.values()) {
      if (now < queue.until) continue;
      // What was on its way when one was refused may yet be refused: nothing may overtake it, so its answer comes first.
      if (queue.settling && queue.items.some(({ state }) => state === 'sent')) continue;
      queue.settling = false;
      let sent = 0;
      for (const item of queue.items) {
        if (sent >= queue.window) break;
        sent += 1;
        if (item.state === 'sent') continue;
        out.push({ item, retry: item.tried });
        item.state = 'sent';
        item.tried = true;
        item.refused = false;
      }
    }
    return out;
  }

  /** When `next` can have something again, or null if only an answer can change that. @param {number} now */
  wakeAt(now) {
    let at = Infinity;
    for (const queue of this.queues.values()) {
      if (queue.items.some((item) => item.state === 'queued')) at = Math.min(at, Math.max(queue.until, this.until));
    }
    return at === Infinity || at <= now ? null : at;
  }

  /** `ok` came, or an entry of one's own with this cid: it is in the log. @param {string} cid @returns {OutboxItem|null} */
  settle(cid) {
    const item = this.find(cid);
    if (!item) return null;
    const queue = this.queues.get(item.peer);
    this.#remove(item);
    // An ok to what was sent before a refusal says nothing of what follows.
    if (queue && !queue.settling) queue.window = Math.min(WINDOW_MAX, queue.window + 1);
    return item;
  }

  /**
   * An `err` came to the item's last try. Returns what to do: `again` (nothing; it stays), `failed` (show it), or
   * `skip` (tell the server to give up the cid in `frame.cid`, which this outbox does not hold).
   * @param {OutboxItem} item  @param {{code: string, msg?: string, retry_ms?: number, cid?: string}} frame  @param {number} now
   * @returns {'again'|'failed'|'skip'}
   */
  refuse(item, frame, now) {
    const queue = this.queues.get(item.peer);
    if (!queue || !queue.items.includes(item)) return 'again';
    item.code = frame.code;
    item.msg = frame.msg ?? null;
    if (frame.code === 'blocked') return this.#blocked(queue, item, frame, now);
    if (typeof frame.retry_ms !== 'number') {
      this.#remove(item);
      item.state = 'failed';
      this.failed.push(item);
      this.size += 1;
      return 'failed';
    }
    item.refused = SURELY_NOT_DONE.has(frame.code);
    item.state = 'queued';
    queue.window = 1;
    queue.settling = true;
    queue.until = now + frame.retry_ms + RETRY_MARGIN_MS;
    if (frame.code === 'rate_limited') this.until = Math.max(this.until, queue.until);
    return 'again';
  }

  /** @returns {'again'|'skip'} */
  #blocked(queue, item, frame, now) {
    item.state = 'queued';
    item.refused = true;
    queue.window = 1;
    queue.settling = true;
    if (queue.items.some((other) => other !== item && other.cid === frame.cid)) return 'again';
    queue.until = Math.max(queue.until, now + BLOCKED_PAUSE_MS);
    return frame.cid ? 'skip' : 'again';
  }

  /**
   * The user gives it up: a failed one always; a waiting one only while its last answer said "not done", so that nothing
   * given up can appear after all. Returns it if the server must be told (`skip`), else null.
   * @param {string} cid  @returns {OutboxItem|null}
   */
  discard(cid) {
    const item = this.find(cid);
    if (!item || !this.canDiscard(item)) return null;
    const told = item.state === 'queued' && item.refused && item.code !== 'blocked';
    const queue = this.queues.get(item.peer);
    this.#remove(item);
    if (queue && told && item.code !== 'rate_limited') queue.until = 0;
    return told ? item : null;
  }

  /** @param {OutboxItem} item */
  canDiscard(item) {
    return item.state === 'failed' || (item.state === 'queued' && (item.refused || !item.tried));
  }

  /**
   * Another epoch: sends stay, by the contract, and so do edits and deletes by `refcid`, which name nothing else from now on. Those by
   * `ref` alone go: it is a place in a log that is no more, and after a restore another message may stand there. Returns what went.
   * @returns {OutboxItem[]}
   */
  newEpoch() {
    const gone = [];
    for (const item of [...[...this.queues.values()].flatMap((queue) => queue.items), ...this.failed]) {
      if (item.kind === 'message') continue;
      if (item.refcid === null) gone.push(item);
      else item.ref = null;
    }
    for (const item of gone) this.#remove(item);
    return gone;
  }

  /** For storage. Failed ones are kept as well: they hold the user's words. */
  save() {
    const all = [...this.queues.values()].flatMap((queue) => queue.items).concat(this.failed);
    return all.map(({ peer, cid, kind, body, ref, refcid, at, tried, state, code, msg }) => (
      { peer, cid, kind, body, ref, refcid, at, tried, failed: state === 'failed', code, msg }));
  }

  /** @param {ReturnType<Outbox['save']>} saved */
  restore(saved) {
    for (const { failed, code, msg, ...what } of saved) {
      const item = this.add({ ...what, tried: true });
      if (!item || !failed) continue;
      this.#remove(item);
      Object.assign(item, { state: 'failed', code, msg });
      this.failed.push(item);
      this.size += 1;
    }
  }

  /** @param {OutboxItem} item */
  #remove(item) {
    const queue = this.queues.get(item.peer);
    if (item.state === 'failed') this.failed = this.failed.filter((other) => other !== item);
    else if (queue) queue.items = queue.items.filter((other) => other !== item);
    if (queue && queue.items.length === 0 && queue.until === 0) this.queues.delete(item.peer);
    this.size -= 1;
  }
}
