/**
 * The protocol of one device: outbox, resync and cursors over one connection. Holds nothing that is shown.
 *
 *      dial.ts ─ which connection, when ─► link.ts ─ one WebSocket
 *         │ open, frames                      │ replies
 *         ▼                                   ▼
 *      engine.ts ◄─ sender.ts (what is to be said) ─ places.ts (how far we are) ──► emit(event)
 *                ◄─ teller.ts (cursors) ─ watcher.ts (watch, away)
 *
 * Guarantees to who hears the events: each log entry once and in order of seq; `reset` before anything of another epoch;
 * nothing is called failed while its outcome is unknown. Events are plain data, so that another tab can mirror them
 * (siblings.ts): it then knows all that it needs to go on where this one ended.
 *
 * Everything that it needs of the world (WebSocket, clock, randomness, tokens) is injected.
 */

import { Dialer, type DialParts } from './dial.js';
import { ChatError, refusal } from './errors.js';
import type { EngineEvent } from './events.js';
import { entryOf, type Frame, isCount, isReceipt, isWelcome, itemOf, listOf, statusOf } from './frames.js';
import type { Clock } from './link.js';
import { Outbox } from './outbox.js';
import { Places } from './places.js';
import { isSame, Sender } from './sender.js';
import { Teller } from './teller.js';
import type { Watcher } from './watcher.js';
import { LIMITS, type Limits, RECONNECT_MS_MAX, retryMs } from './wire.js';

const REFRESH_BEFORE_MS = 60000;
/** A token that ends at once is not renewed faster than that. */
const REFRESH_EVERY_MS = 5000;
/** Pushes held back during a welcome. */
const HELD_FRAMES_MAX = 20000;
/** Of a welcome, before its last; a server has no reason for one. */
const EMPTY_PAGES_MAX = 100;
/** The server takes 8 of a connection and 16 of a user. */
const READS_MAX = 4;
const READ_TRIES_MAX = 4;

export interface EngineParts extends Omit<DialParts, 'onOpen' | 'onFrame' | 'onDown' | 'onLine' | 'onTime'> {
  emit(event: EngineEvent): void;
  /** Seq of a message by its cid, if it is held. */
  seqOf(peer: string, cid: string): number | null;
  /** Resolves when what was emitted so far is stored, or cannot be. */
  stored(): Promise<void> | null;
}

export class Engine {
  device = '';
  user = '';
  limits: Limits = LIMITS;
  readonly places = new Places();
  readonly sender = new Sender(this);
  readonly teller = new Teller(this);
  /** Of who shows presence. */
  watcher: Watcher | null = null;
  readonly dial: Dialer;
  readonly clock: Clock;
  readonly seqOf: EngineParts['seqOf'];
  readonly emit: EngineParts['emit'];
  readonly #parts: EngineParts;
  #ahead: number | null = null;
  /** Pushes held back until the welcome is complete. */
  #held: Frame[] = [];
  #reading = 0;
  readonly #readers: (() => void)[] = [];
  /** Pages of this welcome without a conversation. */
  #empty = 0;
  #isMarkGood = true;
  /** The last hello gave a mark. */
  #hadMark = false;

  constructor(parts: EngineParts) {
    this.#parts = parts;
    this.clock = parts.clock;
    this.seqOf = parts.seqOf;
    this.emit = parts.emit;
    this.dial = new Dialer({
      ...parts,
      onOpen: (token) => this.#hello(token),
      onFrame: (frame) => this.#heard(frame),
      onDown: () => {
        this.#held = [];
        this.#empty = 0;
        this.teller.disconnected();
        this.outbox.disconnected();
      },
      onLine: (line) => {
        const retryAt = line.retryAt && line.retryAt - parts.clock.now() + this.now();
        parts.emit({ t: 'line', line: { ...line, retryAt } });
      },
      onTime: (ts) => this.setTime(ts),
    });
  }

  get outbox(): Outbox {
    return this.sender.outbox;
  }

  /** The server's time, as well as known; durations never depend on it. */
  now(): number {
    return this.#ahead === null ? Date.now() : this.clock.now() + this.#ahead;
  }

  /** The server's time is `ts` now. */
  setTime(ts: number): void {
    this.#ahead = ts - this.clock.now();
  }

  forget(): void {
    this.user = '';
    this.sender.outbox = new Outbox();
    this.places.forget();
    this.teller.cursors.forget();
  }

  // --- requests -----------------------------------------------------------------------------------------------------

  /** `answer` is called once, with `disconnected` where there is no connection. */
  request(frame: Frame, answer: (frame: Frame) => void): void {
    if (this.dial.link) this.dial.link.request(frame, answer);
    else answer({ t: 'err', code: 'disconnected' });
  }

  /** The reply; rejects with ChatError. */
  ask(frame: Frame): Promise<Frame> {
    return new Promise((resolve, reject) => {
      if (!this.dial.isLive) reject(new ChatError({ code: 'disconnected' }));
      else this.request(frame, (reply) => (reply.t === 'err' ? reject(new ChatError(refusal(reply))) : resolve(reply)));
    });
  }

  /** The same for history and conversations: few at once, and again where the server says so. */
  async read(frame: Frame): Promise<Frame> {
    while (this.#reading >= READS_MAX) await new Promise<void>((resolve) => this.#readers.push(resolve));
    this.#reading += 1;
    try {
      for (let tries = 1; ; tries += 1) {
        try {
          return await this.ask(frame);
        } catch (error) {
          const { retryMs: wait } = error as ChatError;
          if (wait === null || tries >= READ_TRIES_MAX) throw error;
          await new Promise<void>((resolve) => this.clock.set(resolve, retryMs(wait, RECONNECT_MS_MAX) ?? 0));
        }
      }
    } finally {
      this.#reading -= 1;
      this.#readers.shift()?.();
    }
  }

  /** The key that names the conversation with `peer`. */
  where(peer: string): { c: string } | { to: string } {
    const c = this.places.names.get(peer);
    return c === undefined ? { to: peer } : { c };
  }

  // --- what comes in ------------------------------------------------------------------------------------------------

  #hello(token: string): void {
    const frame: Frame = {
      t: 'hello',
      v: 1,
      token,
      device: this.device,
      ...this.places.resume(),
      ...this.watcher?.hello(),
      features: [],
    };
    this.#isMarkGood = true;
    this.#hadMark = 'since' in frame;
    this.request(frame, (reply) => reply.t === 'err' && this.#helloRefused(reply));
  }

  #helloRefused({ code: named, retry_ms, msg }: Frame): void {
    const wait = retryMs(retry_ms);
    const code = typeof named === 'string' ? named : 'protocol';
    if (code === 'disconnected') return;
    if (code === 'unauthorized' || code === 'token_expired')
      this.dial.tokenRefused(code, typeof msg === 'string' ? msg : undefined);
    else if (wait !== null) this.dial.lost(code, true, wait);
    else if (code === 'internal') this.dial.lost(code, false);
    else if (this.places.epoch !== null) {
      this.places.forget(); // perhaps the mark or a cursor is what it refuses: once without them
      this.emit({ t: 'reset', why: 'epoch' });
      this.dial.lost(code, false);
    } else this.dial.stop(code);
  }

  #heard(frame: Frame): void {
    if (frame.t === 'welcome') this.#welcome(frame);
    else if (this.dial.line.state === 'connecting') {
      // What overtakes the welcome's last page waits for it, because only it says where the logs start.
      this.#held.push(frame);
      if (this.#held.length > HELD_FRAMES_MAX) this.dial.lost('overrun', true);
    } else this.#pushed(frame);
  }

  #welcome(frame: Frame): void {
    if (this.dial.line.state !== 'connecting') return;
    this.dial.progress();
    if (frame.epoch !== undefined && !this.#welcomed(frame)) return;
    if (this.user === '' || this.places.epoch === null) {
      this.dial.lost('protocol', false);
      return;
    }
    const { list, isWhole } = listOf(frame.conversations, itemOf);
    // What could not be read was not seen listed: then the mark is not good.
    if (!isWhole) {
      this.#isMarkGood = false;
      this.emit({ t: 'malformed', frame });
    }
    for (const item of list) {
      // One that a mark did not know is new: all of it is missing.
      const after = this.places.of.get(item.c)?.seq ?? (this.#hadMark ? 0 : null);
      const isKept = this.places.list(item);
      this.teller.cursors.listed(item, isKept);
      this.emit({ t: 'item', item, isKept, after });
    }
    if (frame.more !== true) this.#live(frame);
    else if (list.length === 0) this.#empty += 1;
    if (this.#empty > EMPTY_PAGES_MAX) this.dial.lost('protocol', false, 0, 'this welcome has no end');
  }

  /** The first page. False: not ours to go on with. */
  #welcomed(frame: Frame): boolean {
    const first: unknown = frame;
    if (!isWelcome(first)) {
      this.emit({ t: 'malformed', frame });
      this.dial.lost('protocol', false);
      return false;
    }
    const { user, epoch, ts } = first;
    if (this.user !== '' && user !== this.user) {
      // The token names somebody else: nothing that the last one wrote may go out under this name.
      this.forget();
      this.emit({ t: 'reset', why: 'another_user' });
      this.dial.lost('another_user', true);
      return false;
    }
    if (this.places.enter(epoch)) {
      this.teller.cursors.forget();
      this.emit({ t: 'reset', why: 'epoch' });
      for (const { cid, peer } of this.outbox.newEpoch()) {
        this.sender.changed(peer);
        this.emit({ t: 'failed', cid, peer, err: { code: 'epoch_changed', cid } });
      }
    }
    this.user = user;
    this.limits = limitsOf(frame.limits);
    this.setTime(ts);
    this.emit({ t: 'welcome', user, epoch, limits: this.limits, ts });
    this.presence(frame.presence, true);
    this.#refreshBefore(frame.exp);
    return true;
  }

  #live(frame: Frame): void {
    const { dial } = this;
    dial.link?.answered(frame.id);
    this.places.since = this.#isMarkGood && typeof frame.since === 'string' ? frame.since : null;
    dial.live();
    const { attempt } = dial;
    const held = this.#held;
    this.#held = [];
    for (const push of held) if (attempt === dial.attempt) this.#pushed(push);
    if (attempt !== dial.attempt) return;
    this.emit({ t: 'synced', since: this.places.since });
    this.watcher?.tell();
    this.teller.tell();
    // What leaves now was perhaps never tried: that must be stored first, as what was never tried can be taken back.
    const waiting = this.outbox.all().filter(({ state, tried }) => state === 'queued' && !tried);
    const stored = waiting.length > 0 ? this.#parts.stored() : null;
    if (stored) void stored.then(() => this.sender.pump());
    else this.sender.pump();
  }

  /** What a frame says of who is here. */
  presence(value: unknown, isAll: boolean): void {
    this.emit({ t: 'presence', list: listOf(value, statusOf).list, isAll });
  }

  #pushed(frame: Frame): void {
    const { t, from } = frame;
    if (t === 'entry') this.#entry(frame);
    else if (t === 'receipt' && isReceipt(frame)) this.teller.receipt(frame);
    else if (t === 'presence') this.presence([frame], false);
    else if (t === 'typing' && typeof from === 'string') this.emit({ t, from });
    else if (t === 'notice' && frame.kind === 'drain') {
      this.dial.timers.clear('cursors');
      this.teller.tell();
      this.dial.drain(isCount(frame.retry_ms) ? frame.retry_ms : 0);
    } else if (t === 'receipt' || t === 'typing') this.emit({ t: 'malformed', frame });
  }

  #entry(frame: Frame): void {
    const entry = entryOf(frame);
    if (entry === null) {
      this.emit({ t: 'malformed', frame });
      const place = this.places.of.get(frame.c as string);
      // It has a place in the log all the same: the next one must not look like a jump.
      if (place && frame.seq === place.seq + 1) this.places.step(frame.c as string, place.peer, frame.seq, place.ts);
      return;
    }
    const { c, seq, ts, cid } = entry;
    const isOwn = entry.from === this.user;
    const peer = isOwn ? entry.to : entry.from;
    const step = this.places.step(c, peer, seq, ts);
    if (step === 'jump') {
      this.dial.lost('jump', false);
      return;
    }
    const settled = isOwn && cid ? this.outbox.settle(cid) : undefined;
    if (step === 'new') this.emit({ t: 'entry', entry, how: 'live' });
    if (settled)
      this.sender.outcome(settled, { c, seq, ts, dup: step === 'known' }, !settled.isGiven || isSame(settled, entry));
    if (step === 'new' && !isOwn) this.teller.cursor(peer, 'ack', seq);
  }

  // --- tokens -------------------------------------------------------------------------------------------------------

  #refreshBefore(exp: unknown): void {
    if (!isCount(exp)) return;
    const left = exp - this.now();
    const wait = Math.max(left - REFRESH_BEFORE_MS, left * 0.75, REFRESH_EVERY_MS);
    this.dial.timers.set('refresh', wait, () => this.#refresh(exp));
  }

  /** Without a new token the server ends this in its time (4002); until then it is asked for again. */
  async #refresh(exp: number): Promise<void> {
    const { attempt } = this.dial;
    let until = exp;
    try {
      until = await this.refresh();
    } catch {
      // Asked for again: by `exp`, which is nearer now.
    }
    if (attempt === this.dial.attempt && this.dial.isLive) this.#refreshBefore(until);
  }

  /** A new token for this connection; gives when it ends. */
  async refresh(): Promise<number> {
    const token = await this.#parts.token('refresh');
    if (!token) throw new ChatError({ code: 'unauthorized' });
    const { exp } = await this.ask({ t: 'refresh', token });
    if (!isCount(exp)) throw new ChatError({ code: 'protocol' });
    return exp;
  }
}

function limitsOf(value: unknown): Limits {
  const given = (value ?? {}) as Record<string, unknown>;
  const limits: Limits = { ...LIMITS };
  for (const key of Object.keys(LIMITS) as (keyof Limits)[]) {
    const value = given[key];
    if (isCount(value) && value > 0) limits[key] = value;
  }
  return limits;
}
