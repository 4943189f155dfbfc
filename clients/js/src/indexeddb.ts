/**
 * A store in IndexedDB: device, epoch, mark, cursors, outbox and recent messages outlive a reload.
 *
 *      database `chatd` ─ records: [scope, key] -> value; [scope, ''] -> who has the scope
 *      localStorage     ─ what was noted and is not written yet (journal.ts)
 *
 * Who opens a scope takes it: each write looks, in its own transaction, whether the scope is still its own, so two clients
 * never mix their states. Every failure ends in one of these reasons, and the client goes on in memory: `none` (no
 * IndexedDB), `denied`, `quota`, `later_version` (of the database), `deleted`, `taken`, `failed`.
 */

import { type Area, Journal, localArea } from './journal.js';

export type { Area } from './journal.js';

import { type Persistence, persist, type Records, type Store } from './store.js';

const VERSION = 1;
const RECORDS = 'records';
const REASONS: Readonly<Record<string, string>> = {
  QuotaExceededError: 'quota',
  VersionError: 'later_version',
  SecurityError: 'denied',
  InvalidStateError: 'denied',
  NotAllowedError: 'denied',
};

export interface IndexedDbOptions {
  /** Of the database. Default: `chatd`. */
  name?: string;
  /** Where there is no global one. */
  indexedDB?: IDBFactory;
  IDBKeyRange?: typeof IDBKeyRange;
  localStorage?: Area;
}

/** A store for `ChatClient`. Nothing is opened before the client starts. */
export function indexedDb(options: IndexedDbOptions = {}): Persistence {
  return persist(indexedDbStore(options));
}

/** The same as a `Store`, to be wrapped and given to `persist`. */
export function indexedDbStore(options: IndexedDbOptions = {}): Store {
  const { name = 'chatd' } = options;
  let db: IDBDatabase | null = null;
  let scope = '';
  let owner = '';
  let journal = new Journal(null, '');

  const close = (): void => {
    db?.close();
    db = null;
  };

  return {
    async open(asked, lost) {
      close();
      scope = asked;
      owner = `${Date.now()} ${Math.random()}`;
      journal = new Journal(options.localStorage ?? localArea(), `${name} ${scope}`);
      const factory = options.indexedDB ?? globalThis.indexedDB;
      if (!factory) throw new Error('none');
      const opened = await database(factory, name);
      db = opened;
      opened.onversionchange = ({ newVersion }) => {
        opened.close();
        lost(newVersion === null ? 'deleted' : 'later_version');
      };
      opened.onclose = () => lost('deleted');
      const records: Records = new Map();
      const range = (options.IDBKeyRange ?? IDBKeyRange).bound([scope], [scope, []]);
      await transact(opened, (table) => {
        const keys = table.getAllKeys(range);
        const values = table.getAll(range);
        values.onsuccess = () => {
          for (const [i, key] of keys.result.entries()) records.set((key as string[])[1] ?? '', values.result[i]);
          for (const [key, value] of journal.read(records.get(''))) {
            put(table, [scope, key], value);
            if (value === undefined) records.delete(key);
            else records.set(key, value);
          }
        };
        table.put(owner, [scope, '']);
      });
      journal.clear();
      records.delete('');
      return records;
    },

    note(changes) {
      if (db) journal.write(owner, changes);
    },

    async save(changes) {
      if (!db) throw new Error('deleted');
      await transact(db, (table, abort) => {
        const had = table.get([scope, '']);
        had.onsuccess = () => {
          if (had.result !== owner) abort('taken');
          else for (const [key, value] of changes) put(table, [scope, key], value);
        };
      });
    },

    close,
  };
}

function put(table: IDBObjectStore, key: string[], value: unknown): void {
  if (value === undefined) table.delete(key);
  else table.put(value, key);
}

function database(factory: IDBFactory, name: string): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    try {
      const asked = factory.open(name, VERSION);
      asked.onupgradeneeded = () => void asked.result.createObjectStore(RECORDS);
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(failure(asked.error));
    } catch (error) {
      reject(failure(error));
    }
  });
}

/** All that `work` asks for, or nothing of it. */
function transact(
  db: IDBDatabase,
  work: (table: IDBObjectStore, abort: (reason: string) => void) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    try {
      const under = db.transaction(RECORDS, 'readwrite');
      let reason = '';
      under.oncomplete = () => resolve();
      under.onabort = () => reject(reason ? new Error(reason) : failure(under.error));
      work(under.objectStore(RECORDS), (why) => {
        reason = why;
        under.abort();
      });
    } catch (error) {
      reject(failure(error));
    }
  });
}

function failure(error: unknown): Error {
  return new Error(REASONS[(error as Error | null)?.name ?? ''] ?? 'failed');
}
