/**
 * Brings what the outbox holds to the server, and tells what became of it.
 *
 *      outbox.ts ──next──► request ──ok──► entry in order, `done`
 *                   ▲         ├──err with retry_ms──► waits, and again
 *                   └─────────┴──err──► `failed`
 */

import type { Engine } from './engine.js';
import { refusal } from './errors.js';
import type { Sent } from './events.js';
import { type Entry, entryOf, type Frame, isStored, listOf } from './frames.js';
import { type Draft, Outbox, type OutboxItem } from './outbox.js';

export class Sender {
  readonly #engine: Engine;
  outbox = new Outbox();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Null when the outbox is full, and for what is to nobody. */
  add(draft: Draft): OutboxItem | null {
    const item = this.outbox.add(draft);
    if (item) this.changed(item.peer);
    this.pump();
    return item;
  }

  /** Takes it back, if it surely is not in the log. */
  discard(cid: string): boolean {
    const peer = this.outbox.find(cid)?.peer;
    const how = this.outbox.discard(cid);
    if (peer === undefined || how === 'kept') return false;
    if (how === 'skip' && this.#engine.dial.isLive) this.#skip(peer, cid);
    this.changed(peer);
    this.#engine.emit({ t: 'failed', cid, peer, err: { code: 'cancelled', cid } });
    this.pump();
    return true;
  }

  /** Another text for what surely is not in the log. */
  amend(cid: string, body: string): boolean {
    const item = this.outbox.find(cid);
    if (!item || item.state === 'failed' || item.kind === 'delete' || !this.outbox.canDiscard(item)) return false;
    item.body = body;
    this.changed(item.peer);
    return true;
  }

  /** Something of what waits for `peer` is another. */
  changed(peer: string): void {
    this.#engine.emit({ t: 'outbox', peer, items: this.outbox.of(peer) });
  }

  #skip(peer: string, cid: string): void {
    this.#engine.request({ t: 'skip', ...this.#engine.where(peer), cid }, () => {});
  }

  /** Sends what may go now. Call it whenever that may have changed. */
  pump(): void {
    if (!this.#engine.dial.isLive) return;
    const now = this.#engine.clock.now();
    const ready = this.outbox.next(now);
    // Before the frames leave, because what is stored must say "tried" of whatever may have reached the server.
    for (const peer of new Set(ready.map(({ item }) => item.peer))) this.changed(peer);
    for (const { item, retry } of ready) this.#push(item, retry);
    const at = this.outbox.wakeAt(now);
    if (at !== null) this.#engine.dial.timers.set('outbox', at - now, () => this.pump());
  }

  #push(item: OutboxItem, isRetry: boolean): void {
    const { kind, cid, body, ref, refcid, peer } = item;
    const frame: Frame = { t: kind === 'message' ? 'send' : kind, ...this.#engine.where(peer), cid };
    if (kind !== 'delete') frame.body = body;
    if (ref !== null) frame.ref = ref;
    if (refcid !== null) frame.refcid = refcid;
    if (isRetry) frame.retry = true;
    this.#engine.request(frame, (reply) => {
      if (reply.code === 'disconnected') return;
      if (reply.t !== 'ok') this.#refused(item, reply);
      else if (isStored(reply)) this.#stored(item, reply);
      else this.#engine.dial.lost('protocol', false);
      this.pump();
    });
  }

  #stored(item: OutboxItem, { c, seq, ts, dup }: { c: string; seq: number; ts: number; dup?: unknown }): void {
    const { cid, kind, peer, refcid } = item;
    if (!this.outbox.settle(cid)) return;
    const isDup = dup === true;
    const entry: Entry = { c, seq, ts, from: this.#engine.user, to: peer, kind, cid };
    if (kind !== 'delete') entry.body = item.body;
    const ref = item.ref ?? (refcid === null ? null : this.#engine.seqOf(peer, refcid));
    if (ref !== null) entry.ref = ref;
    else if (refcid !== null) entry.refcid = refcid;
    // A dup stands outside the order and moves no place: the entry itself comes by resync, history, or came before.
    const step = isDup ? 'dup' : this.#engine.places.step(c, peer, seq, ts);
    const known = (isGood: boolean) => {
      if (isGood && step !== 'jump' && step !== 'known')
        this.#engine.emit({ t: 'entry', entry, how: isDup ? 'dup' : 'live' });
      this.outcome(item, { c, seq, ts, dup: isDup }, isGood);
    };
    if (isDup && item.isGiven) void this.#isSame(item, c, seq).then(known);
    else known(true);
    if (step === 'jump') this.#engine.dial.lost('jump', false);
  }

  /** It is in the log. `isGood`: as what was said. */
  outcome({ cid, peer }: OutboxItem, ok: Sent, isGood: boolean): void {
    this.changed(peer);
    if (isGood) this.#engine.emit({ t: 'done', cid, peer, ok });
    else this.#engine.emit({ t: 'failed', cid, peer, err: { code: 'cid_conflict', cid } });
  }

  /** Whether what stands in the log under a caller's cid is what the caller said. Unknown counts as yes. */
  async #isSame(item: OutboxItem, c: string, seq: number): Promise<boolean> {
    try {
      const page = await this.#engine.read({ t: 'history', c, after: seq - 1, limit: 1 });
      const [entry] = listOf(page.entries, (one) => entryOf(one, c)).list;
      return entry?.seq !== seq || isSame(item, entry);
    } catch {
      return true;
    }
  }

  #refused(item: OutboxItem, reply: Frame): void {
    const err = refusal(reply);
    const then = this.outbox.refuse(item, err, this.#engine.clock.now());
    if (then === 'skip') this.#skip(item.peer, err.cid ?? '');
    this.changed(item.peer);
    if (then === 'failed')
      this.#engine.emit({ t: 'failed', cid: item.cid, peer: item.peer, err: { ...err, cid: item.cid } });
  }
}

/** Whether an own entry is what was asked for. One that was changed since cannot tell. */
export function isSame({ kind, body }: OutboxItem, entry: Entry): boolean {
  return entry.kind === kind && (kind !== 'message' || entry.rev !== undefined || entry.body === body);
}
