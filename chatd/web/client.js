/**
 * The protocol client of `chatd.v1`: outbox, resync, cursors over one connection. No DOM and no storage.
 *
 *      dial.js  ─ which connection, when ─►  link.js ─ one WebSocket
 *         │ open, frames                        │ replies
 *         ▼                                     ▼
 *      client.js ◄─ outbox.js (what is to be said) ─ places.js (how far we are) ──► sink (the model)
 *
 * Guarantees to the sink: each log entry once and in order of seq; `reset` before anything of another epoch; nothing is
 * called "failed" while its outcome is unknown. The sink gets calls, never throws back, and holds all that is shown.
 * Everything it needs of the world (WebSocket, clock, randomness, tokens) is injected, so tests run it without a network.
 */

import { Dialer } from './dial.js';
import { Outbox } from './outbox.js';
import { Cursors, Places } from './places.js';
import { HELLO_LIST_BYTES_MAX, LIMITS, VERSION, fitting } from './wire.js';

const CURSOR_DELAY_MS = 80;
/** Cursors told at once; the rest follows when these are answered, so that a long absence does not meet the server's frame limit. */
const CURSOR_FRAMES_MAX = 50;
const REFRESH_BEFORE_MS = 60000;
/** Pushes held back during a welcome. */
const HELD_FRAMES_MAX = 20000;
/** @typedef {import('./dial.js').Status} Status */
/** @typedef {import('./outbox.js').OutboxItem} OutboxItem */
/** @typedef {import('./wire.js').Entry} Entry */
/** @typedef {import('./wire.js').Item} Item */
/**
 * Who shows it. `entry`'s second argument: `live` in order, `dup` known from a dup ok only.
 * @typedef {{status(s: Status): void, welcome(frame: any): void, reset(): void, item(item: Item, kept: boolean): void, synced(): void,
 *   entry(entry: Entry, how: 'live'|'dup'): void, cursors(frame: any): void, presence(list: any[]): void, typing(frame: any): void, seqOf(peer: string, cid: string): number|null,
 *   outbox(peer: string): void, dropped(items: OutboxItem[]): void}} Sink
 */

/** A request that failed: by an `err` frame, or (`code` "disconnected") by the end of the connection. */
export class RequestError extends Error {
  /** @param {{code: string, msg?: string, retry_ms?: number}} frame */
  constructor({ code, msg, retry_ms }) {
    super(msg ?? code);
    this.code = code;
    this.retry_ms = retry_ms;
  }
}

export class Client {
  /**
   * @param {{url: string, device: string, sink: Sink, token: (renew: string|null) => Promise<string|null>,
   *   WebSocket: any, clock: {now(): number, set(fn: () => void, ms: number): any, clear(handle: any): void},
   *   random?: () => number, uuid: () => string}} parts
   * `token` gives the token; with `renew` (the reason) a new one, or null if there is none without the user.
   */
  constructor({ url, device, sink, token, WebSocket, clock, random = Math.random, uuid }) {
    this.device = device;
    this.sink = sink;
    this.token = token;
    this.clock = clock;
    this.uuid = uuid;
    this.outbox = new Outbox();
    this.places = new Places();
    this.cursors = new Cursors();
    this.user = '';
    /** What the server said when it last refused the token; '' if it never did. */
    this.refusal = '';
    this.limits = LIMITS;
    this.away = false;
    /** @type {string[]} */
    this.watched = [];
    /** @type {any[]} pushes held back until the welcome is complete */
    this.held = [];
    this.serverAhead = 0;
    /** What the server was last told of `watched` and `away` on this connection. */
    this.told = { watch: '', away: false };
    /** Cursor requests under way. */
    this.telling = 0;
    this.dial = new Dialer({
      url, WebSocket, clock, random, token,
      onOpen: (fresh) => this.#hello(fresh),
      onFrame: (frame) => this.#heard(frame),
      onDown: () => this.#down(),
      onStatus: (status) => sink.status(status),
    });
    this.timers = this.dial.timers;
  }

  // --- life ---------------------------------------------------------------------------------------------------------

  /** Connects now, whatever it was waiting for. Idempotent while connected. */
  connect() {
    this.dial.connect();
  }

  /** Ends it; `connect` starts again. */
  close() {
    this.dial.close();
  }

  /** The device woke up or the network changed: find out now whether the line is alive. */
  wake() {
    this.dial.wake();
  }

  get status() {
    return this.dial.status;
  }

  /** Another user, or the same anew: nothing of the last one stays. */
  forget() {
    this.close();
    this.#forgetUser();
    this.watched = [];
  }

  #forgetUser() {
    this.user = '';
    this.outbox = new Outbox();
    this.places.forget();
    this.cursors.forget();
  }

  /** The server's time, as well as known. */
  now() {
    return this.clock.now() + this.serverAhead;
  }

  /** The connection is over: what was on its way has an unknown outcome. */
  #down() {
    this.held = [];
    this.outbox.disconnected();
  }

  /** Only while live; else it is answered `disconnected`. */
  #request(frame, answer) {
    if (this.dial.link) this.dial.link.request(frame, answer);
    else answer({ t: 'err', code: 'disconnected' });
  }

  // --- requests -----------------------------------------------------------------------------------------------------

  /** @param {object} frame  @returns {Promise<any>} the reply; rejects with RequestError */
  #ask(frame) {
    return new Promise((resolve, reject) => {
      if (!this.dial.isLive) reject(new RequestError({ code: 'disconnected' }));
      else this.#request(frame, (reply) => (reply.t === 'err' ? reject(new RequestError(reply)) : resolve(reply)));
    });
  }

  #where(peer) {
    const c = this.places.names.get(peer);
    return c === undefined ? { to: peer } : { c };
  }

  /** @param {string} peer  @param {{before?: number, after?: number, limit: number}} range */
  history(peer, range) {
    return this.#ask({ t: 'history', ...this.#where(peer), ...range });
  }

  /** @param {string} peer */
  typing(peer) {
    return this.#ask({ t: 'typing', ...this.#where(peer) });
  }

  /** @param {string[]} users whom the page shows, the most important first */
  watch(users) {
    this.watched = fitting(users.slice(0, this.limits.watch), HELLO_LIST_BYTES_MAX / 2);
    this.#tellWatch();
  }

  /** @param {boolean} away */
  setAway(away) {
    this.away = away;
    this.#tellAway();
  }

  /** Told once live, because what changes while a hello is on its way is in no frame yet. */
  #tellWatch() {
    const watch = this.watched.join('\n');
    if (!this.dial.isLive || watch === this.told.watch || this.timers.has('watch')) return;
    this.told.watch = watch;
    this.#request({ t: 'watch', users: this.watched }, (reply) => {
      if (reply.t === 'ok') this.sink.presence(reply.presence ?? []);
      else this.#tellLater('watch', reply, () => this.#tellWatch());
    });
  }

  #tellAway() {
    const away = this.away;
    if (!this.dial.isLive || away === this.told.away || this.timers.has('away')) return;
    this.told.away = away;
    this.#request({ t: 'presence', state: away ? 'away' : 'online' }, (reply) => {
      if (reply.t === 'err') this.#tellLater('away', reply, () => this.#tellAway());
    });
  }

  /** Refused for now: say it again when the server allows. @param {'watch'|'away'} what */
  #tellLater(what, { code, retry_ms }, again) {
    if (code === 'disconnected' || typeof retry_ms !== 'number') return;
    if (what === 'watch') this.told.watch = '\n';
    else this.told.away = !this.away;
    this.timers.set(what, retry_ms, again);
  }

  // --- outbox -------------------------------------------------------------------------------------------------------

  /** @returns {OutboxItem|null} null when the outbox is full, and for what is to nobody */
  #add(what) {
    const item = this.outbox.add({ ...what, cid: this.uuid().toLowerCase(), at: this.clock.now() });
    if (item === null) return null;
    this.sink.outbox(what.peer);
    this.#pump();
    return item;
  }

  /** @param {string} peer  @param {string} body */
  send(peer, body) {
    return this.#add({ peer, kind: 'message', body });
  }

  /** @param {string} peer  @param {number} ref  @param {string} body  @param {string|null} [refcid] cid of that message, if known */
  edit(peer, ref, body, refcid = null) {
    return this.#add({ peer, kind: 'edit', ref, refcid, body });
  }

  /** @param {string} peer  @param {number} ref  @param {string|null} [refcid] cid of that message, if known */
  delete(peer, ref, refcid = null) {
    return this.#add({ peer, kind: 'delete', ref, refcid });
  }

  /** A failed one anew, with a new cid. @param {string} cid */
  again(cid) {
    const item = this.outbox.find(cid);
    if (item?.state !== 'failed') return;
    this.outbox.discard(cid);
    this.#add({ peer: item.peer, kind: item.kind, body: item.body, ref: item.ref, refcid: item.refcid });
  }

  /** @param {string} cid */
  discard(cid) {
    const peer = this.outbox.find(cid)?.peer;
    if (peer === undefined) return;
    const told = this.outbox.discard(cid);
    if (told && this.dial.isLive) this.#skip(told.peer, cid);
    this.sink.outbox(peer);
    this.#pump();
  }

  #skip(peer, cid) {
    this.#request({ t: 'skip', ...this.#where(peer), cid }, () => {});
  }

  #pump() {
    if (!this.dial.isLive) return;
    const now = this.clock.now();
    const ready = this.outbox.next(now);
    // Before the frames leave, because what is stored must say "tried" of whatever may have reached the server.
    for (const peer of new Set(ready.map(({ item }) => item.peer))) this.sink.outbox(peer);
    for (const { item, retry } of ready) this.#push(item, retry);
    const at = this.outbox.wakeAt(now);
    if (at !== null) this.timers.set('outbox', at - now, () => this.#pump());
  }

  #push(item, retry) {
    /** @type {any} */
    const frame = { t: item.kind === 'message' ? 'send' : item.kind, ...this.#where(item.peer), cid: item.cid };
    if (item.kind !== 'delete') frame.body = item.body;
    if (item.ref !== null) frame.ref = item.ref;
    if (item.refcid !== null) frame.refcid = item.refcid;
    if (retry) frame.retry = true;
    this.#request(frame, (reply) => {
      if (reply.code === 'disconnected') return;
      if (reply.t === 'ok') this.#stored(item, reply);
      else this.#refused(item, reply);
      this.#pump();
    });
  }

  #stored(item, { c, seq, ts, dup }) {
    this.outbox.settle(item.cid);
    const entry = { c, seq, ts, from: this.user, to: item.peer, kind: item.kind, cid: item.cid };
    if (item.kind !== 'delete') entry.body = item.body;
    if (item.kind !== 'message') entry.ref = item.ref ?? this.sink.seqOf(item.peer, item.refcid) ?? undefined;
    // A dup stands outside the order and moves no place: the entry itself comes by resync, history, or came before.
    const step = dup ? 'dup' : this.places.step(c, item.peer, seq, ts);
    if (step === 'jump') this.dial.lost('jump', false);
    else if (step !== 'known') this.sink.entry(entry, dup ? 'dup' : 'live');
    this.sink.outbox(item.peer);
  }

  #refused(item, reply) {
    if (this.outbox.refuse(item, reply, this.clock.now()) === 'skip') this.#skip(item.peer, reply.cid);
    this.sink.outbox(item.peer);
  }

  // --- cursors ------------------------------------------------------------------------------------------------------

  /** This device has everything up to `seq`. Entries that come in order are acked by themselves. */
  ack(peer, seq) {
    this.#cursor(peer, 'ack', seq);
  }

  /** The user has seen everything up to `seq`. */
  read(peer, seq) {
    this.#cursor(peer, 'read', seq);
  }

  #cursor(peer, what, seq) {
    const c = this.places.names.get(peer);
    if (c === undefined || peer === this.user) return;
    this.cursors[what](c, seq);
    if (this.dial.isLive && !this.timers.has('cursors')) this.timers.set('cursors', CURSOR_DELAY_MS, () => this.#tell());
  }

  #tell() {
    if (!this.dial.isLive || this.timers.has('cursors') || this.telling > 0) return;
    for (const frame of this.cursors.due().slice(0, CURSOR_FRAMES_MAX)) {
      this.telling += 1;
      this.#request(frame, (reply) => {
        this.telling -= 1;
        if (reply.code === 'disconnected') return;
        this.#cursorTold(frame, reply);
        if (this.telling === 0) this.#tell();
      });
    }
  }

  #cursorTold({ t, c, seq }, reply) {
    if (reply.t === 'ok') {
      this.cursors.known(c, reply);
      this.sink.cursors({ ...reply, c, from: this.user });
      if (!(reply[t === 'read' ? 'read' : 'delivered'] >= seq)) this.cursors.refused(c);
    } else if (typeof reply.retry_ms === 'number') this.timers.set('cursors', reply.retry_ms, () => this.#tell());
    else this.cursors.refused(c);
  }

  // --- what comes in ------------------------------------------------------------------------------------------------

  #hello(token) {
    const frame = {
      t: 'hello', v: VERSION, token, device: this.device, ...this.places.resume(), watch: this.watched,
      state: this.away ? 'away' : 'online', features: [],
    };
    this.told = { watch: this.watched.join('\n'), away: this.away };
    this.#request(frame, (reply) => this.#helloRefused(reply));
  }

  #helloRefused({ code, msg, retry_ms }) {
    if (code === 'disconnected') return;
    if (code === 'unauthorized' || code === 'token_expired') {
      this.refusal = msg ?? '';
      this.dial.tokenRefused(code);
    } else if (typeof retry_ms === 'number') this.dial.lost(code, true, retry_ms);
    else if (this.places.epoch !== null) {
      this.places.forget(); // perhaps the mark or a cursor is what it refuses: once without them
      this.sink.reset();
      this.dial.lost(code, false);
    } else this.dial.giveUp();
  }

  #heard(frame) {
    if (frame.t === 'welcome') this.#welcome(frame);
    else if (this.status.state === 'connecting') this.#hold(frame);
    else this.#pushed(frame);
  }

  /** Pushes that overtake the welcome's last page wait for it, because only it says where their logs start. */
  #hold(frame) {
    this.held.push(frame);
    if (this.held.length > HELD_FRAMES_MAX) this.dial.lost('overrun', true);
  }

  #welcome(frame) {
    if (this.status.state !== 'connecting') return;
    this.dial.progress();
    if (frame.epoch !== undefined && !this.#welcomed(frame)) return;
    for (const item of frame.conversations ?? []) {
      const kept = this.places.list(item);
      this.cursors.listed(item, kept);
      this.sink.item(item, kept);
    }
    if (frame.more !== true) this.#live(frame);
  }

  /** The first page. False: not ours to go on with. */
  #welcomed(frame) {
    if (this.user !== '' && frame.user !== this.user) {
      // The token names somebody else: nothing that the last one wrote may go out under this name.
      this.#forgetUser();
      this.sink.reset();
      this.dial.lost('other_user', true);
      return false;
    }
    if (this.places.enter(frame.epoch)) {
      this.cursors.forget();
      this.sink.reset();
      this.sink.dropped(this.outbox.newEpoch());
    }
    this.user = frame.user;
    this.limits = { ...LIMITS, ...frame.limits };
    this.serverAhead = frame.ts - this.clock.now();
    this.sink.welcome(frame);
    this.sink.presence(frame.presence ?? []);
    this.#refreshBefore(frame.exp);
    return true;
  }

  #live(frame) {
    this.dial.link?.answered(frame.id);
    this.places.since = frame.since ?? null;
    this.dial.live();
    const attempt = this.dial.attempt;
    const held = this.held;
    this.held = [];
    for (const push of held) if (attempt === this.dial.attempt) this.#pushed(push);
    if (attempt !== this.dial.attempt) return;
    this.sink.synced();
    this.#tellWatch();
    this.#tellAway();
    this.#tell();
    this.#pump();
  }

  #pushed(frame) {
    if (frame.t === 'entry') this.#entry(frame);
    else if (frame.t === 'receipt') {
      if (frame.from === this.user) this.cursors.known(frame.c, frame);
      this.sink.cursors(frame);
    } else if (frame.t === 'presence') this.sink.presence([frame]);
    else if (frame.t === 'typing') this.sink.typing(frame);
    else if (frame.t === 'notice' && frame.kind === 'drain') this.#drain(frame.retry_ms ?? 0);
  }

  #entry(entry) {
    const own = entry.from === this.user;
    const peer = own ? entry.to : entry.from;
    const step = this.places.step(entry.c, peer, entry.seq, entry.ts);
    if (step === 'jump') {
      this.dial.lost('jump', false);
      return;
    }
    const settled = own && entry.cid ? this.outbox.settle(entry.cid) : null;
    if (step === 'new') this.sink.entry(entry, 'live');
    if (settled) this.sink.outbox(peer);
    if (step === 'new' && !own) this.ack(peer, entry.seq);
  }

  /** New sends wait for the next server; what is on its way is still answered here. */
  #drain(retry_ms) {
    this.timers.clear('cursors');
    this.#tell();
    this.dial.drain(retry_ms);
  }

  #refreshBefore(exp) {
    if (!exp) return;
    this.timers.set('refresh', Math.max(1000, exp - this.now() - REFRESH_BEFORE_MS), () => this.#refresh());
  }

  /** No new token: then the server ends this in its time (4002), and the user is asked. */
  async #refresh() {
    const attempt = this.dial.attempt;
    const token = await this.token('refresh').catch(() => null);
    if (token === null || attempt !== this.dial.attempt || !this.dial.isLive) return;
    this.#request({ t: 'refresh', token }, (reply) => this.#refreshBefore(reply.exp));
  }
}
