/**
 * Stores what is to outlive a reload: device, epoch, mark, cursors, outbox and the recent messages.
 *
 *      what changed ─► Keeper (dirty keys) ──one transaction of all that is dirty──► Store
 *
 * Everything that changed is written together, because a mark is good only with the places that belong to it. A store
 * that fails (full, denied, deleted, taken by another client) is given up: the client goes on in memory.
 */

import type { ChatClient } from './client.js';
import type { EngineEvent } from './events.js';
import type { Keeping } from './parts.js';
import { load, META, recordOf, restore } from './snapshot.js';
import type { Records, Store } from './store.js';

const SAVE_DELAY_MS = 50;
/** A store that does not answer by then is given up. */
const OPEN_MS_MAX = 3000;
/** What leaves is not held up longer than that. */
const STORED_MS_MAX = 300;

export class Keeper implements Keeping {
  readonly #store: Store;
  readonly #client: ChatClient;
  #dirty = new Set<string>();
  #isOpen = false;
  #isTimed = false;
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
    else if (event.t === 'receipt') this.touch(event.peer);
    else if (event.t === 'welcome' || event.t === 'synced') this.#touch(null);
  }

  touch(peer: string): void {
    this.#touch(peer);
  }

  /** Something of this peer, or of all, is another. */
  #touch(peer: string | null, what: 'c' | 'o' = 'c'): void {
    if (!this.#isOpen) return;
    this.#dirty.add(META);
    if (peer !== null) this.#dirty.add(`${what}/${peer}`);
    // The outbox is stored nowhere else, and a page that ends lets no transaction end: so it is stored now, but once all
    // that is done in this turn has been done, because what leaves must be stored as `tried`.
    if (what === 'o') queueMicrotask(() => void this.flush());
    if (this.#isTimed) return;
    this.#isTimed = true;
    this.#client._clock.set(() => void this.flush(), SAVE_DELAY_MS);
  }

  touchAll(peers: Iterable<string>): void {
    for (const peer of peers) {
      this.#touch(peer);
      this.#touch(peer, 'o');
    }
  }

  async flush(): Promise<void> {
    this.#isTimed = false;
    while (this.#saving) await this.#saving;
    if (!this.#isOpen || this.#dirty.size === 0) return;
    const changes = new Map([...this.#dirty].map((key) => [key, recordOf(key, this.#client)]));
    this.#dirty.clear();
    this.#saving = this.#store.save(structuredClone(changes)).catch((error) => this.#lose(reasonOf(error)));
    await this.#saving;
    this.#saving = null;
  }

  /** The same, but not for ever. */
  stored(): Promise<void> | null {
    if (!this.#isOpen) return null;
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
    this.#isOpen = false;
    this.#dirty = new Set();
  }
}

function reasonOf(error: unknown): string {
  const { name, message } = (error ?? {}) as { name?: unknown; message?: unknown };
  return name === 'Error' || typeof name !== 'string' ? String(message ?? error) : name;
}
