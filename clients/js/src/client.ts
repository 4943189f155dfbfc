/**
 * The client of an application: one user on one device, everything that it does and everything that it shows.
 *
 *      application ──calls──► ChatClient ──► Engine ──► server
 *                                 ▲  │          │ events
 *      stores, events, promises ──┘  └─ Model ◄─┴─► Keeper (store), other tabs
 *
 * Guarantees: what `send` took is sent in order and once, over lost lines, restarts of the server and (with a store)
 * reloads; each entry comes once and in order; nothing is called failed while its outcome is unknown. The constructor
 * touches nothing outside.
 */

import { Composer, type SendOptions, type Target, uuid } from './composer.js';
import type { Line } from './dial.js';
import { Emitter } from './emitter.js';
import { Engine } from './engine.js';
import { ChatError } from './errors.js';
import type { EngineEvent, ResetReason } from './events.js';
import type { Entry, HistoryPage, Item } from './frames.js';
import type { Clock, SocketClass } from './link.js';
import { Loads, type Range, type Way } from './loads.js';
import { Model } from './model.js';
import type { ChatClientOptions, ChatEvents, LiveEntry, UserId } from './options.js';
import type { Paged } from './paged.js';
import { type ConversationsPage, Reader } from './reader.js';
import { type Sending, Waiters } from './sending.js';
import { Siblings } from './siblings.js';
import { Keeper, load, outboxOf } from './store.js';
import { EntryStream, type Gap } from './stream.js';
import { type Stores, Views } from './views.js';
import { type Limits, TYPING_REPEAT_MS } from './wire.js';

const CLOCK: Clock = {
  now: () => performance.now(),
  set: (fn, ms) => setTimeout(fn, ms),
  clear: (handle) => clearTimeout(handle as number),
};

export class ChatClient {
  /** What to show. */
  readonly stores: Stores;
  readonly #options: ChatClientOptions;
  readonly #clock: Clock;
  readonly #engine: Engine;
  readonly #model: Model;
  readonly #views: Views;
  readonly #loads: Loads;
  readonly #keeper: Keeper | null;
  readonly #emitter = new Emitter<ChatEvents>();
  readonly #waiters = new Waiters();
  readonly #streams = new Set<EntryStream<LiveEntry>>();
  readonly #typedAt = new Map<string, number>();
  readonly #siblings: Siblings;
  readonly #composer: Composer;
  readonly #reader: Reader;
  #isStarted = false;
  #isLoaded = false;
  #leave: (() => void) | null = null;

  constructor(options: ChatClientOptions) {
    this.#options = options;
    this.#clock = options.clock ?? CLOCK;
    this.#engine = new Engine({
      url: options.url,
      // Late, so that a server can import this that has no WebSocket.
      WebSocket: options.webSocket ?? ((globalThis as { WebSocket?: unknown }).WebSocket as SocketClass),
      clock: this.#clock,
      random: options.random ?? Math.random,
      token: async (renew) => options.token(renew),
      emit: (event) => this.#heard(event),
      seqOf: (peer, cid) => this.#model.seqOf(peer, cid),
      stored: () => this.#keeper?.stored() ?? null,
    });
    this.#model = new Model({
      touched: (what) => this.#views.touched(what),
      isWatched: (peer) => this.#views.isWatched(peer),
      pending: (peer) => this.#engine.outbox.of(peer),
      now: () => this.now(),
      after: (ms, fn) => void this.#clock.set(fn, ms),
    });
    this.#loads = new Loads(
      this.#model,
      (peer, range) => this.#reader.history(peer, range),
      (peer, seq) => this.ack(peer as UserId, seq),
    );
    this.#views = new Views(
      this.#model,
      () => this.#engine.outbox,
      (peer) => this.#loads.isLoading(peer),
      (error) => this.#emitter.failed(error),
    );
    this.stores = this.#views;
    this.#keeper = options.store
      ? new Keeper({
          store: options.store,
          clock: this.#clock,
          engine: this.#engine,
          model: this.#model,
          lost: (reason) => this.#emitter.emit('store', { state: 'memory', reason }),
        })
      : null;
    this.#engine.user = this.#model.user = options.user ?? '';
    this.#engine.device = options.device ?? '';
    this.#siblings = new Siblings({
      engine: this.#engine,
      model: this.#model,
      scope: this.#scope,
      apply: (event) => this.#apply(event),
      lead: () => this.#lead(),
      retired: () => {
        this.#isLoaded = false;
        this.#keeper?.close();
      },
      forget: () => this.#forget(),
      gap: (gap) => this.#gap(gap),
      role: (role) => this.#emitter.emit('role', role),
    });
    this.#composer = new Composer(this.#engine, this.#model, this.#waiters, this.#siblings);
    this.#reader = new Reader(this.#engine, this.#siblings);
  }

  // --- life ---------------------------------------------------------------------------------------------------------

  /** Loads what is stored, then connects. Resolves when the first is done; `line` tells of the second. Idempotent. */
  async start(): Promise<void> {
    if (!this.#isStarted) {
      this.#isStarted = true;
      this.#leave =
        this.#options.platform?.({
          wake: () => this.#siblings.tell('wake'),
          away: (isAway) => this.away(isAway),
          save: () => void this.#keeper?.flush(),
          freeze: (isFrozen) => this.#siblings.freeze(isFrozen),
        }) ?? null;
      if (this.#options.tabs) {
        this.#siblings.join(this.#options.tabs);
        return;
      }
    }
    if (this.#siblings.isFollower) this.#siblings.tell('connect');
    else await this.#lead();
  }

  /** Ends the connection, keeps all state. What waits is sent after the next `start`; who awaits it gets `stopped`. */
  async stop(): Promise<void> {
    this.#leave?.();
    this.#leave = null;
    this.#engine.dial.close();
    this.#isStarted = this.#isLoaded = false;
    await this.#keeper?.flush();
    this.#keeper?.close();
    this.#siblings.leave();
    this.#waiters.failAll('stopped', 'the client was stopped');
    for (const stream of this.#streams) stream.end();
  }

  /** Another user comes, or nobody: ends the connection, and nothing of this user stays, stored or not. */
  async forget(): Promise<void> {
    await this.#siblings.run('forget');
    await this.stop();
  }

  async #lead(): Promise<void> {
    if (!this.#isLoaded) {
      this.#isLoaded = true;
      await this.#load();
      if (!this.#isStarted) return;
    }
    this.#engine.device ||= `js-${uuid()}`;
    if (typeof (this.#options.webSocket ?? globalThis.WebSocket) !== 'function') this.#engine.dial.stop('no_websocket');
    else this.#engine.dial.connect();
  }

  async #load(): Promise<void> {
    const records = await this.#keeper?.open(this.#scope);
    if (!records) return;
    if (!load(records, this.#engine, this.#model, (gap) => this.#gap(gap))) {
      this.#keeper?.lose('another_user');
      return;
    }
    this.#engine.outbox.restore(outboxOf(records));
    this.#outboxChanged();
    this.#keeper?.touchAll(this.#model.chats.keys());
  }

  #outboxChanged(): void {
    for (const { peer } of this.#engine.outbox.all()) {
      this.#model.take({ t: 'outbox', peer, items: this.#engine.outbox.of(peer) });
    }
  }

  async #forget(): Promise<void> {
    const peers = [...this.#model.chats.keys()];
    this.#engine.dial.close();
    this.#engine.forget();
    this.#heard({ t: 'reset', why: 'forgotten' });
    this.#keeper?.touchAll(peers);
    await this.#keeper?.flush();
  }

  get #scope(): string {
    return `${this.#options.url} ${this.#options.user ?? ''}`;
  }

  /** The user of this client, once known; else ''. */
  get user(): UserId {
    return this.#model.user as UserId;
  }

  /** What the server allows: `body_bytes`, `edit_ms` and others. */
  get limits(): Readonly<Limits> {
    return this.#engine.limits;
  }

  /** The server's time in ms since 1970, as well as known; for showing, not for durations. */
  now(): number {
    return this.#engine.now();
  }

  // --- saying something ---------------------------------------------------------------------------------------------

  /** Sends a message. Online or not, it is taken at once, and sent in order and once. */
  send(peer: UserId, body: string, options: SendOptions = {}): Sending {
    return this.#composer.say(peer, 'message', body, null, options);
  }

  /** Changes an own message. */
  edit(peer: UserId, target: Target, body: string, options: SendOptions = {}): Sending {
    return this.#composer.say(peer, 'edit', body, target, options);
  }

  /** Deletes an own message for both. */
  delete(peer: UserId, target: Target, options: SendOptions = {}): Sending {
    return this.#composer.say(peer, 'delete', null, target, options);
  }

  /** The handle of something that waits in the outbox: after a reload too. */
  waiting(cid: string): Sending | null {
    return this.#composer.waiting(cid.toLowerCase());
  }

  /** Takes back what surely is not in the log, or a failed one. True: it is gone. */
  cancel(cid: string): Promise<boolean> {
    return this.#composer.cancel(cid.toLowerCase());
  }

  /** Another text for what surely is not in the log. True: that one goes out. */
  async amend(cid: string, body: string): Promise<boolean> {
    this.#composer.check(body, cid);
    return (await this.#siblings.run('amend', cid.toLowerCase(), body)) === true;
  }

  /** A failed one anew, with a new cid; null where it cannot succeed, or did not fail. */
  again(cid: string): Sending | null {
    return this.#composer.again(cid.toLowerCase());
  }

  /** The user has seen everything up to `seq`; without one, all that is held. */
  read(peer: UserId, seq: number = this.#model.chats.get(peer)?.log.hi ?? 0): void {
    this.#model.see(peer, seq);
    this.#cursor(peer, 'read', seq);
  }

  /** This device has everything up to `seq`. What comes in order is acked by itself. */
  ack(peer: UserId, seq: number): void {
    this.#cursor(peer, 'ack', seq);
  }

  #cursor(peer: string, what: 'ack' | 'read', seq: number): void {
    this.#engine.teller.cursor(peer, what, seq);
    if (!this.#siblings.isFollower) this.#keeper?.touch(peer);
    if (this.#siblings.isFollower) this.#siblings.tell('cursor', peer, what, seq);
  }

  /** The user is typing: call it at each key, it is told at most every 4 s. */
  typing(peer: UserId): void {
    const now = this.#clock.now();
    if (now - (this.#typedAt.get(peer) ?? -Infinity) < TYPING_REPEAT_MS) return;
    this.#typedAt.set(peer, now);
    this.#siblings.tell('ask', { t: 'typing', ...this.#engine.where(peer) });
  }

  /** Whose presence to get, the most important first; replaces the last list. */
  watch(users: readonly UserId[]): void {
    this.#siblings.wish({ watch: [...users] });
  }

  /** Nobody looks at this one. Somebody is away where that holds of all tabs and devices. */
  away(isAway: boolean): void {
    this.#siblings.wish({ away: isAway });
  }

  // --- asking -------------------------------------------------------------------------------------------------------

  /** A page of the log; iterated over: all entries in that direction. Rejects with `disconnected` while not online. */
  history(peer: UserId, range: Range = {}): Paged<Entry, HistoryPage> {
    return this.#reader.history(peer, range);
  }

  /** A page of the list of conversations, the latest entry first; iterated over: all of them. */
  conversations(range: { limit?: number; cursor?: string } = {}): Paged<Item, ConversationsPage> {
    return this.#reader.conversations(range);
  }

  /** Gets messages into `stores.messages(peer)`. */
  load(peer: UserId, way: Way = 'older'): Promise<void> {
    return this.#loads.load(peer, way);
  }

  /** A new token for this connection, now. */
  async refresh(): Promise<void> {
    await this.#siblings.run('refresh');
  }

  // --- hearing ------------------------------------------------------------------------------------------------------

  /** Calls `fn` at each event from now on; gives what ends that. A listener that throws hurts nobody else. */
  on<K extends keyof ChatEvents>(event: K, fn: (value: ChatEvents[K]) => void): () => void {
    return this.#emitter.on(event, fn);
  }

  /**
   * All entries from now on, one's own too, of each conversation in order; too much missed is fetched in between. Ends
   * with `stop`.
   */
  entries(): AsyncIterableIterator<LiveEntry> {
    const stream: EntryStream<LiveEntry> = new EntryStream(
      (gap) => this.#reader.fill(gap, () => this.#isStarted),
      (entry) => this.#made(entry),
      () => this.#streams.delete(stream),
    );
    this.#streams.add(stream);
    return stream;
  }

  #made(entry: Entry): LiveEntry {
    const peer = (entry.from === this.#model.user ? entry.to : entry.from) as UserId;
    return { ...entry, peer, epoch: this.#engine.places.epoch ?? '' };
  }

  // --- what the engine says -----------------------------------------------------------------------------------------

  /** Of this tab's engine. */
  #heard(event: EngineEvent): void {
    this.#apply(event);
    this.#siblings.broadcast(event);
  }

  #apply(event: EngineEvent): void {
    this.#model.take(event);
    this.#keep(event);
    const emit = this.#emitter.emit.bind(this.#emitter);
    if (event.t === 'line') this.#line(event.line);
    else if (event.t === 'synced') emit('synced', { user: this.user });
    else if (event.t === 'entry' && event.how === 'live') this.#entry(this.#made(event.entry));
    else if (event.t === 'item') this.#item(event);
    else if (event.t === 'receipt') {
      const peer = this.#model.peerOf(event.c) as UserId | undefined;
      if (peer !== undefined) emit('receipt', { peer, from: event.from, delivered: event.delivered, read: event.read });
    } else if (event.t === 'presence') {
      for (const { user, state, seen } of event.list) emit('presence', { user, state, seen: seen ?? null });
    } else if (event.t === 'typing') emit('typing', { peer: event.from });
    else if (event.t === 'done') {
      this.#waiters.done(event.cid, event.ok);
      emit('sent', { ...event.ok, cid: event.cid, peer: event.peer });
    } else if (event.t === 'failed') {
      this.#waiters.failed(event.cid, event.err);
      emit('failed', { cid: event.cid, peer: event.peer, error: new ChatError({ ...event.err, cid: event.cid }) });
    } else if (event.t === 'reset') this.#reset(event.why);
    else if (event.t === 'malformed') emit('malformed', event.frame);
  }

  #line(line: Line): void {
    this.#emitter.emit('line', line);
    if (line.state === 'stopped' && line.reason !== '') this.#waiters.failAll('stopped', line.reason);
  }

  #entry(entry: LiveEntry): void {
    for (const stream of this.#streams) stream.push(entry);
    this.#emitter.emit('entry', entry);
    // By the seq, and not by the count: a welcome has counted what it is about to bring.
    const isUnread = entry.from !== this.user && entry.seq > (this.#model.chats.get(entry.peer)?.read ?? 0);
    if (isUnread && entry.kind === 'message') this.#emitter.emit('message', entry);
  }

  #item({ item, isKept, after }: EngineEvent & { t: 'item' }): void {
    if (isKept || item.reset || after === null || after >= item.head) return;
    this.#gap({ peer: item.peer, c: item.c, after, head: item.head });
  }

  #gap(gap: Gap): void {
    for (const stream of this.#streams) stream.push(gap);
    this.#emitter.emit('gap', gap);
  }

  #reset(reason: ResetReason): void {
    for (const stream of this.#streams) stream.reset();
    if (reason !== 'epoch') this.#waiters.failAll(reason, 'it was to be sent by another user');
    if (reason === 'another_user') this.#keeper?.lose(reason);
    this.#emitter.emit('reset', { reason });
  }

  /** What of it is to be stored. */
  #keep(event: EngineEvent): void {
    const keeper = this.#keeper;
    if (!keeper || this.#siblings.isFollower) return;
    if (event.t === 'reset' && event.why === 'epoch') keeper.touchAll(this.#model.chats.keys());
    else if (event.t === 'item') keeper.touch(event.item.peer);
    else if (event.t === 'outbox') keeper.touch(event.peer, 'o');
    else if (event.t === 'entry') keeper.touch(this.#made(event.entry).peer);
    else if (event.t === 'receipt') keeper.touch(this.#model.peerOf(event.c) ?? null);
    else if (event.t === 'welcome' || event.t === 'synced') keeper.touch(null);
  }
}
