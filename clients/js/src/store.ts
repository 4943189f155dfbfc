/** Where a client keeps what outlives a reload. */

import type { ChatClient } from './client.js';
import { Keeper } from './keeper.js';
import type { Keeping } from './parts.js';

/** Records by key. Their values are plain data. */
export type Records = Map<string, unknown>;

/**
 * Where a client keeps its state. One client at a time: who opens a scope takes it from whoever had it.
 */
export interface Store {
  /**
   * All records of a scope. `lost` is called with a reason when the store is no longer of use, at any time after.
   * Rejects where there is no such store.
   */
  open(scope: string, lost: (reason: string) => void): Promise<Records>;
  /** Writes all or nothing; `undefined` deletes. Rejects where it cannot. */
  save(changes: Records): Promise<void>;
  /**
   * Keeps these changes before it returns, in place of those that it kept so before: the next `open` has them in its
   * records, also where the page ends before `save` has written them. Optional: without it the last words before a
   * reload may be lost.
   */
  note?(changes: Records): void;
  close(): void;
}

/** What a client's option `store` takes. */
export type Persistence = (client: ChatClient) => Keeping;

/** Makes a store of one's own the `store` of a client: on React Native, or with encrypted values. */
export function persist(store: Store): Persistence {
  return (client) => new Keeper(store, client);
}
