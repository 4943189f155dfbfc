/**
 * The client of an application: one user on one device, everything that it does and everything that it shows.
 *
 *      application ──calls──► ChatClient ──► Engine ──► server
 *                                 ▲  │          │ events
 *      stores, events, promises ──┘  └─ Model ◄─┴─► Keeper (store), other tabs
 *
 * Its guarantees are those of `CoreClient`, with a store over reloads too.
 */

import { CoreClient } from './core.js';
import { Loads, type Way } from './loads.js';
import { Model } from './model.js';
import type { ChatClientOptions, UserId } from './options.js';
import type { Inside } from './parts.js';
import { type Stores, Views } from './views.js';

export class ChatClient extends CoreClient {
  /** What to show. */
  readonly stores: Stores;
  readonly #model: Model;
  readonly #loads: Loads;

  constructor(options: ChatClientOptions) {
    super(options);
    const engine = this._engine;
    const model: Model = new Model({
      touched: (what) => views.touched(what),
      isWatched: (peer) => views.isWatched(peer),
      pending: (peer) => engine.outbox.of(peer),
      now: () => this.now(),
      after: (ms, fn) => void this._clock.set(fn, ms),
    });
    this.#loads = new Loads(
      model,
      (peer, range) => this.history(peer as UserId, range),
      (peer, seq) => this.ack(peer as UserId, seq),
    );
    const views: Views = new Views(
      model,
      () => engine.outbox,
      (peer) => this.#loads.isLoading(peer),
      (error) => this._emitter.failed(error),
    );
    model.user = engine.user;
    this.stores = views;
    this.#model = this._held = model;
    const inside: Inside = {
      engine,
      model,
      clock: this._clock,
      scope: this._scope,
      commands: this._commands,
      apply: (event) => this._apply(event),
      gap: (gap) => this._gap(gap),
      resume: (gap) => this._resume(gap),
      gaps: () => this._gaps(),
      lead: () => this._lead(),
      retired: () => this._retired(),
      role: (role) => this._emitter.emit('role', role),
      lost: (reason) => this._emitter.emit('store', { state: 'memory', reason }),
    };
    this._keeping = options.store?.(inside) ?? null;
    this._together = options.tabs?.(inside) ?? null;
  }

  /** The user has seen everything up to `seq`; without one, all that is held. */
  override read(peer: UserId, seq: number = this.#model.chats.get(peer)?.log.hi ?? 0): void {
    this.#model.see(peer, seq);
    super.read(peer, seq);
  }

  /** Gets messages into `stores.messages(peer)`. */
  load(peer: UserId, way: Way = 'older'): Promise<void> {
    return this.#loads.load(peer, way);
  }
}
