/**
 * Stores what is to outlive a reload: device, epoch, mark, cursors, outbox and the recent messages.
 *
 *      what changed ─► Keeper (dirty keys) ──one transaction of all that is dirty──► Store
 *      outbox       ─► noted in the same task, until that is done ──────────────────► Store
 *
 * Everything that changed is written together, because a mark is good only with the places that belong to it. A store
 * that fails (full, denied, deleted, taken by another client) is given up: the client goes on in memory.
 */

import type { ChatClient } from './client.js';
import type { EngineEvent } from './events.js';
import type { Keeping } from './parts.js';
import { isOutbox, load, META, recordOf, restore } from './snapshot.js';
import type { Records, Store } from './store.js';

const SAVE_DELAY_MS = 50;
/** Of cursors that the server told: the next welcome tells them again, so they go with what is stored next. */
const CURSORS_DELAY_MS = 1000;
/** A store that does not answer by then is given up. */
const OPEN_MS_MAX = 3000;
/** What leaves is not held up longer than that. */
const STORED_MS_MAX = 300;

export class Keeper implements Keeping {
  readonly #store: Store;
  readonly #client: ChatClient;
  #dirty = new Set<string>();
  /** What a transaction is on its way with. */
  #writing = new Set<string>();
  #isOpen = false;
  /** What was stored has been taken, so that nothing of it is overwritten. */
  #isTaken = false;
  #timer: unknown = null;
  /** When it runs. */
  #saveAt = Infinity;
  #isNoting = false;
  #saving: Promise<void> | null = null;

  constructor(store: Store, client: ChatClient) {
    this.#store = store;
    this.#client = client;
  }

  async open(): Promise<void> {
    const client = this.#client;
    const { outbox } = client._engine;
    const records = await this.#read(client._scope);
    if (!this.#isOpen) return;
    if (!load(records, client, (gap) => client._resume(gap))) {
      this.#lose('another_user');
      return;
    }
    restore(outbox, records);
    this.#isTaken = true;
    for (const peer of new Set(outbox.all().map((item) => item.peer)))
      client._apply({ t: 'outbox', peer, items: outbox.of(peer) });
    this.touchAll(client._model.chats.keys());
  }

  async #read(scope: string): Promise<Records> {
    const { _clock: clock } = this.#client;
    let timer: unknown;
    try {
      this.#isOpen = true;
      const late = new Promise<never>((_, reject) => {
        timer = clock.set(() => reject(new Error('timeout')), OPEN_MS_MAX);
      });
      return await Promise.race([this.#store.open(scope, (reason) => this.#lose(reason)), late]);
    } catch (error) {
      this.#lose(reasonOf(error));
      return new Map();
    } finally {
      clock.clear(timer);
    }
  }

  /** What of it is to be stored. */
  keep(event: EngineEvent): void {
    const { _model: model } = this.#client;
    if (event.t === 'reset' && event.why === 'another_user') this.#lose(event.why);
    else if (event.t === 'reset' && event.why === 'epoch') this.touchAll(model.chats.keys());
    else if (event.t === 'item') this.touch(event.item.peer);
    else if (event.t === 'outbox') this.#touch(event.peer, 'o');
    else if (event.t === 'entry') this.touch(event.entry.from === model.user ? event.entry.to : event.entry.from);
    else if (event.t === 'receipt') this.#touch(event.peer, 'c', CURSORS_DELAY_MS);
    else if (event.t === 'welcome' || event.t === 'synced') this.#touch(null);
  }

  touch(peer: string): void {
    this.#touch(peer);
  }

  /** Something of this peer, or of all, is another. */
  #touch(peer: string | null, what: 'c' | 'o' = 'c', delayMs = SAVE_DELAY_MS): void {
    if (!this.#isOpen) return;
    this.#dirty.add(META);
    if (peer !== null) this.#dirty.add(`${what}/${peer}`);
    if (what === 'o') this.#noteSoon();
    this.#flushIn(delayMs);
  }

  #flushIn(ms: number): void {
    const { _clock: clock } = this.#client;
    const at = clock.now() + ms;
    if (this.#saveAt <= at) return;
    clock.clear(this.#timer);
    this.#saveAt = at;
    this.#timer = clock.set(() => void this.flush(), ms);
  }

  touchAll(peers: Iterable<string>): void {
    for (const peer of peers) {
      this.#touch(peer);
      this.#touch(peer, 'o');
    }
  }

  /**
   * The outbox is stored nowhere else, and a page that ends lets no transaction end: so it is noted and stored now, but
   * once all that is done in this turn has been done, because what leaves must be stored as `tried`.
   */
  #noteSoon(): void {
    if (this.#isNoting) return;
    this.#isNoting = true;
    queueMicrotask(() => {
      this.#isNoting = false;
      this.#note();
      void this.flush();
    });
  }

  /** Of the outbox, all that the store has not confirmed. */
  #note(): void {
    const keys = [...this.#writing, ...this.#dirty].filter(isOutbox);
    if (this.#isTaken) this.#store.note?.(this.#recordsOf(keys));
  }

  #recordsOf(keys: Iterable<string>): Records {
    return new Map([...keys].map((key) => [key, recordOf(key, this.#client)]));
  }

  async flush(): Promise<void> {
    this.#client._clock.clear(this.#timer);
    this.#saveAt = Infinity;
    while (this.#saving) await this.#saving;
    if (!this.#isTaken || this.#dirty.size === 0) return;
    this.#writing = this.#dirty;
    this.#dirty = new Set();
    const changes = structuredClone(this.#recordsOf(this.#writing));
    this.#saving = this.#store.save(changes).catch((error) => this.#lose(reasonOf(error)));
    await this.#saving;
    this.#saving = null;
    this.#writing = new Set();
    this.#note();
  }

  /** The same, but not for ever. */
  stored(): Promise<void> | null {
    if (!this.#isTaken) return null;
    return Promise.race([
      this.flush(),
      new Promise<void>((resolve) => this.#client._clock.set(resolve, STORED_MS_MAX)),
    ]);
  }

  #lose(reason: string): void {
    if (!this.#isOpen) return;
    this.close();
    this.#client._emitter.emit('store', { state: 'memory', reason });
  }

  close(): void {
    if (this.#isOpen) this.#store.close();
    this.#isOpen = this.#isTaken = false;
    this.#dirty = new Set();
  }
}

function reasonOf(error: unknown): string {
  const { name, message } = (error ?? {}) as { name?: unknown; message?: unknown };
  return name === 'Error' || typeof name !== 'string' ? String(message ?? error) : name;
}
