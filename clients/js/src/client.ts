/**
 * The client of an application: one user on one device, everything that it does and everything that it shows.
 *
 *      application ──calls──► ChatClient ──► Engine ──► server
 *                                 ▲  │          │ events
 *      stores, events, promises ──┘  └─ Model ◄─┴─► Keeper (store), other tabs
 *
 * Its guarantees are those of `CoreClient`, with a store over reloads too. What stores and what joins tabs is given by
 * options, and finds here all that it needs.
 */

import { type Commands, moreCommandsOf, type Wish } from './commands.js';
import { again, check, waiting } from './composer.js';
import { CoreClient } from './core.js';
import type { EngineEvent } from './events.js';
import { Loads, type Way } from './loads.js';
import { Model } from './model.js';
import type { ChatClientOptions, PlatformHooks, UserId } from './options.js';
import type { Sending } from './sending.js';
import { type Stores, Views } from './views.js';
import { Watcher } from './watcher.js';

export class ChatClient extends CoreClient {
  /** What to show. */
  readonly stores: Stores;
  /** @internal What the state is of. */
  readonly _scope: string;
  /** @internal */
  readonly _model: Model;
  /** @internal */
  readonly _views: Views;
  /** @internal */
  readonly _loads: Loads;
  /** @internal */
  declare _commands: Commands;

  constructor(options: ChatClientOptions) {
    super(options);
    const engine = this._engine;
    this._scope = `${options.url} ${options.user ?? ''}`;
    this._held = this._model = new Model(this);
    this._loads = new Loads(this);
    this.stores = this._views = new Views(this);
    engine.watcher = new Watcher(engine);
    Object.assign(
      this._commands,
      moreCommandsOf(engine, engine.watcher, () => this.#forget()),
    );
    this._keeping = options.store?.(this) ?? null;
    this._together = options.tabs?.(this) ?? null;
  }

  /** Another user comes, or nobody: ends the connection, and nothing of this user stays, stored or not. */
  async forget(): Promise<void> {
    await this._run('forget');
    await this.stop();
  }

  async #forget(): Promise<void> {
    const engine = this._engine;
    const peers = [...this._model.chats.keys()];
    engine.dial.close();
    engine.forget();
    this._heard({ t: 'reset', why: 'forgotten' });
    this._keeping?.touchAll(peers);
    await this._keeping?.flush();
  }

  /** The handle of something that waits in the outbox: after a reload too. */
  waiting(cid: string): Sending | null {
    return waiting(this, cid.toLowerCase());
  }

  /** Another text for what surely is not in the log. True: that one goes out. */
  async amend(cid: string, body: string): Promise<boolean> {
    check(this, body, cid);
    return this._run('amend', cid.toLowerCase(), body);
  }

  /** A failed one anew, with a new cid; null where it cannot succeed, or did not fail. */
  again(cid: string): Sending | null {
    return again(this, cid.toLowerCase());
  }

  /** The user has seen everything up to `seq`; without one, all that is held. */
  override read(peer: UserId, seq: number = this._model.chats.get(peer)?.log.hi ?? 0): void {
    this._model.see(peer, seq);
    super.read(peer, seq);
  }

  /** Whose presence to get, the most important first; replaces the last list. */
  watch(users: readonly UserId[]): void {
    this.#wish({ watch: [...users] });
  }

  /** Nobody looks at this one. Somebody is away where that holds of all tabs and devices. */
  away(isAway: boolean): void {
    this.#wish({ away: isAway });
  }

  #wish(wish: Wish): void {
    if (this._together) this._together.wish(wish);
    else this._commands.wish(wish);
  }

  /** Gets messages into `stores.messages(peer)`. */
  load(peer: UserId, way: Way = 'older'): Promise<void> {
    return this._loads.load(peer, way);
  }

  /** @internal */
  override _hooks(): PlatformHooks {
    return {
      ...super._hooks(),
      away: (isAway) => this.away(isAway),
      save: () => void this._keeping?.flush(),
      freeze: (isFrozen) => this._together?.freeze(isFrozen),
    };
  }

  /** @internal */
  override _apply(event: EngineEvent): void {
    super._apply(event);
    if (event.t !== 'presence') return;
    for (const { user, state, seen } of event.list) this._emitter.emit('presence', { user, state, seen: seen ?? null });
  }
}
