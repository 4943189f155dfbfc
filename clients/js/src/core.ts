/**
 * The client of a program that sends and reads, and shows nothing: one user on one device.
 *
 *      application ──calls──► CoreClient ──► Engine ──► server
 *           ▲                     │ ▲           │
 *           └─ events, promises ──┘ └─ events ──┘
 *
 * Guarantees: what `send` took is sent in order and once, over lost lines and restarts of the server; each entry comes
 * once and in order; nothing is called failed while its outcome is unknown. The constructor touches nothing outside.
 *
 * `ChatClient` is the same with what is shown, and with the parts that outlive a reload or join several tabs. Members
 * that begin with `_` are for it and its parts.
 */

import { type Commands, commandsOf } from './commands.js';
import { madeDevice, type SendOptions, say, type Target } from './composer.js';
import type { Line } from './dial.js';
import { Emitter } from './emitter.js';
import { Engine } from './engine.js';
import { ChatError } from './errors.js';
import type { EngineEvent, ResetReason } from './events.js';
import type { Entry, HistoryPage, Item } from './frames.js';
import type { Clock, SocketClass } from './link.js';
import type { ChatEvents, CoreOptions, LiveEntry, PlatformHooks, UserId } from './options.js';
import type { Paged } from './paged.js';
import type { Held, Keeping, Together } from './parts.js';
import { type ConversationsPage, conversations, fill, history, type Range } from './reader.js';
import { type Sending, Waiters } from './sending.js';
import { EntryStream, type Gap } from './stream.js';
import { type Limits, TYPING_REPEAT_MS } from './wire.js';

const CLOCK: Clock = {
  now: () => performance.now(),
  set: (fn, ms) => setTimeout(fn, ms),
  clear: (handle) => clearTimeout(handle as number),
};

export class CoreClient {
  /** @internal */
  readonly _clock: Clock;
  /** @internal */
  readonly _engine: Engine;
  /** @internal */
  readonly _emitter = new Emitter<ChatEvents>();
  /** @internal All of them where this is a `ChatClient`. */
  _commands: Partial<Commands>;
  /** @internal */
  readonly _waiters = new Waiters();
  /** @internal */
  _held: Held | null = null;
  /** @internal */
  _keeping: Keeping | null = null;
  /** @internal */
  _together: Together | null = null;
  readonly #options: CoreOptions;
  readonly #streams = new Set<EntryStream<LiveEntry>>();
  readonly #typedAt = new Map<string, number>();
  /** Holes that nobody has filled: of what was stored, and of streams that `stop` ended. For the next stream. */
  #gaps: Gap[] = [];
  #isStarted = false;
  #isLoaded = false;
  #leave: (() => void) | null = null;

  constructor(options: CoreOptions) {
    this.#options = options;
    this._clock = options.clock ?? CLOCK;
    this._engine = new Engine({
      url: options.url,
      // Late, so that a server can import this that has no WebSocket.
      WebSocket: options.webSocket ?? ((globalThis as { WebSocket?: unknown }).WebSocket as SocketClass),
      clock: this._clock,
      random: options.random ?? Math.random,
      // White space is no part of a token, and a file or a command ends it by a newline.
      token: async (renew) => (await options.token(renew))?.trim?.() ?? null,
      emit: (event) => this._heard(event),
      seqOf: (peer, cid) => this._held?.find(peer, { seq: null, cid })?.seq ?? null,
      stored: () => this._keeping?.stored() ?? null,
    });
    this._engine.user = options.user ?? '';
    this._engine.device = options.device ?? '';
    this._commands = commandsOf(this._engine);
  }

  // --- life ---------------------------------------------------------------------------------------------------------

  /** Loads what is stored, then connects. Resolves when the first is done; `line` tells of the second. Idempotent. */
  async start(): Promise<void> {
    const isFirst = !this.#isStarted;
    this.#isStarted = true;
    if (isFirst) this.#leave = this.#options.platform?.(this._hooks()) ?? null;
    if (isFirst && this._together) this._together.join();
    else if (this._together?.isFollower) this.#tell('connect');
    else await this._lead();
  }

  /** @internal What the platform may tell. */
  _hooks(): PlatformHooks {
    return { wake: () => this.#tell('wake'), away() {}, save() {}, freeze() {} };
  }

  /** Ends the connection, keeps all state. What waits is sent after the next `start`; who awaits it gets `stopped`. */
  async stop(): Promise<void> {
    this.#leave?.();
    this.#leave = null;
    this._engine.dial.close();
    this.#isStarted = false;
    await this._keeping?.flush();
    this._retired();
    this._together?.leave();
    this._waiters.failAll('stopped');
    for (const stream of this.#streams) stream.end();
    this.#gaps = this._gaps();
    this.#streams.clear();
  }

  /** @internal This client gets the connection. */
  async _lead(): Promise<void> {
    const engine = this._engine;
    if (!this.#isLoaded) {
      this.#isLoaded = true;
      await this._keeping?.open();
      if (!this.#isStarted) return;
    }
    engine.device ||= madeDevice();
    if (typeof (this.#options.webSocket ?? globalThis.WebSocket) !== 'function') engine.dial.stop('no_websocket');
    else engine.dial.connect();
  }

  /** @internal Another tab gets the connection, or none. */
  _retired(): void {
    this.#isLoaded = false;
    this._keeping?.close();
  }

  /** The user of this client, once known; else ''. */
  get user(): UserId {
    return this._engine.user as UserId;
  }

  /** What the server allows: `body_bytes`, `edit_ms` and others. */
  get limits(): Readonly<Limits> {
    return this._engine.limits;
  }

  /** The server's time in ms since 1970, as well as known; for showing, not for durations. */
  now(): number {
    return this._engine.now();
  }

  /** @internal Has it done by the engine that has the connection. */
  async _run<K extends keyof Commands>(
    name: K,
    ...args: Parameters<Commands[K]>
  ): Promise<Awaited<ReturnType<Commands[K]>>> {
    if (this._together) return this._together.run(name, ...args);
    const command = this._commands[name] as (...args: Parameters<Commands[K]>) => ReturnType<Commands[K]>;
    return await command(...args);
  }

  #tell<K extends keyof Commands>(name: K, ...args: Parameters<Commands[K]>): void {
    void this._run(name, ...args).catch(() => {});
  }

  // --- saying something ---------------------------------------------------------------------------------------------

  /** Sends a message. Online or not, it is taken at once, and sent in order and once. */
  send(peer: UserId, body: string, options: SendOptions = {}): Sending {
    this.#typedAt.delete(peer); // the message ends the sign there: the next key is told
    return say(this, peer, 'message', body, null, options);
  }

  /** Changes an own message. */
  edit(peer: UserId, target: Target, body: string, options: SendOptions = {}): Sending {
    return say(this, peer, 'edit', body, target, options);
  }

  /** Deletes an own message for both. */
  delete(peer: UserId, target: Target, options: SendOptions = {}): Sending {
    return say(this, peer, 'delete', null, target, options);
  }

  /** Takes back what surely is not in the log, or a failed one. True: it is gone. */
  cancel(cid: string): Promise<boolean> {
    return this._run('discard', cid.toLowerCase());
  }

  /** The user has seen everything up to `seq`; without one, all that came. */
  read(peer: UserId, seq: number = this._engine.places.at(peer)?.seq ?? 0): void {
    this.#cursor(peer, 'read', seq);
  }

  /** This device has everything up to `seq`. What comes in order is acked by itself. */
  ack(peer: UserId, seq: number): void {
    this.#cursor(peer, 'ack', seq);
  }

  #cursor(peer: string, what: 'ack' | 'read', seq: number): void {
    this._engine.teller.cursor(peer, what, seq);
    if (this._together?.isFollower) this.#tell('cursor', peer, what, seq);
    else this._keeping?.touch(peer);
  }

  /** The user is typing: call it at each key, it is told at most every 4 s, and at once behind a message. */
  typing(peer: UserId): void {
    const now = this._clock.now();
    if (now - (this.#typedAt.get(peer) ?? -Infinity) < TYPING_REPEAT_MS) return;
    this.#typedAt.set(peer, now);
    this.#tell('ask', { t: 'typing', ...this._engine.where(peer) });
  }

  // --- asking -------------------------------------------------------------------------------------------------------

  /** A page of the log; iterated over: all entries in that direction. Rejects with `disconnected` while not online. */
  history(peer: UserId, range: Range = {}): Paged<Entry, HistoryPage> {
    return history(this, peer, range);
  }

  /** A page of the list of conversations, the latest entry first; iterated over: all of them. */
  conversations(range: { limit?: number; cursor?: string } = {}): Paged<Item, ConversationsPage> {
    return conversations(this, range);
  }

  /** A new token for this connection, now. */
  async refresh(): Promise<void> {
    await this._run('refresh');
  }

  // --- hearing ------------------------------------------------------------------------------------------------------

  /** Calls `fn` at each event from now on; gives what ends that. A listener that throws hurts nobody else. */
  on<K extends keyof ChatEvents>(event: K, fn: (value: ChatEvents[K]) => void): () => void {
    return this._emitter.on(event, fn);
  }

  /**
   * All entries from now on, one's own too, of each conversation in order; too much missed is fetched in between. Ends
   * with `stop`. The first one after a `start` goes on with what the last one had yet to fetch.
   */
  entries(): AsyncIterableIterator<LiveEntry> {
    const stream: EntryStream<LiveEntry> = new EntryStream(
      (gap) => fill(this, gap, () => this.#isStarted),
      (entry) => this.#made(entry),
      ({ peer }) => this._keeping?.touch(peer),
      () => this.#streams.delete(stream),
    );
    for (const gap of this.#gaps.splice(0)) stream.push(gap);
    this.#streams.add(stream);
    return stream;
  }

  /** @internal What somebody who iterates over `entries` still waits for. */
  _gaps(): Gap[] {
    const open = new Map<string, Gap>(); // where two streams wait for the same, that of the one behind
    for (const gap of [...this.#gaps, ...[...this.#streams].flatMap(({ gaps }) => gaps)]) {
      const key = `${gap.head} ${gap.c}`;
      if (gap.after <= (open.get(key) ?? gap).after) open.set(key, gap);
    }
    return [...open.values()];
  }

  /** @internal Before a reload somebody waited for this. */
  _resume(gap: Gap): void {
    if (this.#streams.size > 0) this.#push(gap);
    else this.#gaps.push(gap);
  }

  #push(gap: Gap): void {
    for (const stream of this.#streams) stream.push({ ...gap });
  }

  #made(entry: Entry): LiveEntry {
    const peer = (entry.from === this.user ? entry.to : entry.from) as UserId;
    return { ...entry, peer, epoch: this._engine.places.epoch ?? '' };
  }

  // --- what the engine says -----------------------------------------------------------------------------------------

  /** @internal Of this tab's engine. */
  _heard(event: EngineEvent): void {
    this._apply(event);
    this._together?.broadcast(event);
  }

  /** @internal Of this tab's engine, of another's, or of what was stored. */
  _apply(event: EngineEvent): void {
    this._held?.take(event);
    if (!this._together?.isFollower) this._keeping?.keep(event);
    const emit = this._emitter.emit.bind(this._emitter);
    if (event.t === 'line') this.#line(event.line);
    else if (event.t === 'synced') emit('synced', { user: this.user });
    else if (event.t === 'entry' && event.how === 'live') this.#entry(this.#made(event.entry));
    else if (event.t === 'item') this.#item(event);
    else if (event.t === 'receipt') {
      const { peer, from, delivered, read } = event;
      emit('receipt', { peer, from, delivered, read });
    } else if (event.t === 'typing') emit('typing', { peer: event.from });
    else if (event.t === 'done') {
      this._waiters.done(event.cid, event.ok);
      emit('sent', { ...event.ok, cid: event.cid, peer: event.peer });
    } else if (event.t === 'failed') {
      this._waiters.failed(event.cid, event.err);
      emit('failed', { cid: event.cid, peer: event.peer, error: new ChatError({ ...event.err, cid: event.cid }) });
    } else if (event.t === 'reset') this.#reset(event.why);
    else if (event.t === 'malformed') emit('malformed', event.frame);
  }

  #line(line: Line): void {
    this._emitter.emit('line', line);
    if (line.state === 'stopped' && line.reason !== '') this._waiters.failAll('stopped', line.reason);
  }

  #entry(entry: LiveEntry): void {
    for (const stream of this.#streams) stream.push(entry);
    this._emitter.emit('entry', entry);
    // By the seq, and not by the count: a welcome has counted what it is about to bring.
    const isUnread = entry.from !== this.user && entry.seq > this._engine.teller.cursors.readOf(entry.c);
    if (isUnread && entry.kind === 'message') this._emitter.emit('message', entry);
  }

  #item({ item, isKept, after }: EngineEvent & { t: 'item' }): void {
    if (isKept || item.reset || after === null || after >= item.head) return;
    this._gap({ peer: item.peer, c: item.c, after, head: item.head });
  }

  /** @internal */
  _gap(gap: Gap): void {
    this.#push(gap);
    this._emitter.emit('gap', gap);
  }

  #reset(reason: ResetReason): void {
    for (const stream of this.#streams) stream.reset();
    this.#gaps = [];
    if (reason !== 'epoch') this._waiters.failAll(reason);
    this._emitter.emit('reset', { reason });
  }
}

export { ChatError } from './errors.js';
