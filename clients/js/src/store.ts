/**
 * What outlives a reload, if a store is given: device, epoch, mark, cursors, outbox and the recent messages.
 *
 *      what changed ─► Keeper (dirty keys) ──one transaction of all that is dirty──► Store
 *
 * A mark is good only with the places that belong to it, so everything that changed is written together, and a record
 * that cannot be read on the way in takes the mark with it. The store may be anybody's to edit: all is checked.
 * A store that fails (full, denied, deleted, taken by another client) is given up: the client goes on in memory.
 */

import type { Engine } from './engine.js';
import { isCount, isPeer, itemOf } from './frames.js';
import type { Clock } from './link.js';
import type { LogMessage, SavedLog } from './log.js';
import type { Chat, Model } from './model.js';
import { isItem, type OutboxItem } from './outbox.js';
import type { Gap } from './stream.js';

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
  close(): void;
}

/** Messages of each conversation that are stored. */
export const MESSAGES_STORED = 50;
const SAVE_DELAY_MS = 50;
/** A store that does not answer by then is given up. */
const OPEN_MS_MAX = 3000;
/** What leaves is not held up longer than that. */
const STORED_MS_MAX = 300;
const META = 'meta';
const CHAT = 'c/';
const OUTBOX = 'o/';

interface Meta {
  user: string;
  device: string;
  epoch: string | null;
  since: string | null;
}

/** The record of a key as it is now; undefined: there is none. */
function recordOf(key: string, { user, device, places, outbox }: Engine, model: Model): unknown {
  const { epoch, since } = places;
  if (key === META) return user === '' ? undefined : ({ user, device, epoch, since } satisfies Meta);
  const peer = key.slice(2);
  if (key.startsWith(OUTBOX)) {
    const items = outbox.of(peer);
    return items.length > 0 ? items : undefined;
  }
  const chat = model.chats.get(peer);
  const place = chat?.c == null ? undefined : places.of.get(chat.c);
  if (!chat || !place) return undefined;
  const { c, ts, delivered, read, peerDelivered: peer_delivered, peerRead: peer_read, unread, open, log } = chat;
  const item = {
    c,
    peer,
    head: place.head,
    floor: log.floor,
    ts,
    delivered,
    read,
    peer_delivered,
    peer_read,
    unread,
    open,
  };
  return { item, seq: place.seq, log: log.save(MESSAGES_STORED) };
}

/** All records as they are now: what another tab begins with. */
export function dump(engine: Engine, model: Model): Records {
  const peers = [...model.chats.keys()];
  const keys = [META, ...peers.map((peer) => CHAT + peer), ...peers.map((peer) => OUTBOX + peer)];
  return new Map(keys.map((key) => [key, recordOf(key, engine, model)] as const).filter(([, value]) => value));
}

/** The epoch of what was stored; null if there is none. */
export function epochOf(records: Records): string | null {
  const { epoch } = (records.get(META) ?? {}) as Partial<Meta>;
  return isPeer(epoch) ? epoch : null;
}

/**
 * Takes what was stored, as far as it is further than what is here. `gap` hears where it is further than what came here
 * as entries. False: it is another user's, and nothing was taken. The outbox is not taken: `outboxOf` gives it.
 */
export function load(records: Records, engine: Engine, model: Model, gap: (gap: Gap) => void): boolean {
  const meta = records.get(META) as Partial<Meta> | undefined;
  if (!meta || !isPeer(meta.user)) return true;
  if (engine.user !== '' && meta.user !== engine.user) return false;
  const { places } = engine;
  const epoch = epochOf(records);
  engine.user = model.user = meta.user;
  if (!engine.device && isPeer(meta.device)) engine.device = meta.device;
  if (epoch === null || (places.epoch !== null && places.epoch !== epoch)) return true;
  places.epoch = epoch;
  let isWhole = true;
  for (const [key, value] of records) {
    if (!key.startsWith(CHAT)) continue;
    const { item, seq, log } = (value ?? {}) as { item?: unknown; seq?: unknown; log?: unknown };
    const good = itemOf(item);
    if (!good || !isCount(seq) || !isLog(log)) {
      isWhole = false;
      continue;
    }
    const { c, peer } = good;
    const had = places.of.get(c)?.seq;
    if (had !== undefined && had >= seq) continue;
    if (had !== undefined) gap({ peer, c, after: had, head: seq });
    places.put(c, { ...good, seq });
    const chat = model.with(peer);
    takeChat(chat, good, model);
    chat.log.load(log);
    model.changed(peer);
  }
  places.since = isWhole && isPeer(meta.since) ? meta.since : null;
  return true;
}

function takeChat(chat: Chat, item: NonNullable<ReturnType<typeof itemOf>>, model: Model): void {
  const { ts, delivered, read, peer_delivered: peerDelivered, peer_read: peerRead, unread, open, head } = item;
  Object.assign(chat, { ts, delivered, read, peerDelivered, peerRead, unread, listedOpen: open, countedTo: head });
  model.name(chat, item.c);
}

/** What waited. */
export function outboxOf(records: Records): OutboxItem[] {
  return [...records].flatMap(([key, value]) =>
    key.startsWith(OUTBOX) && Array.isArray(value) ? value.filter(isItem) : [],
  );
}

function isLog(value: unknown): value is SavedLog {
  const { lo, hi, floor, head, messages } = (value ?? {}) as SavedLog;
  const isEmpty = lo === null && hi === null;
  if (!isCount(floor) || !isCount(head) || !Array.isArray(messages)) return false;
  if (isEmpty) return messages.length === 0;
  return isCount(lo) && isCount(hi) && messages.every((one) => isMessage(one) && one.seq >= lo && one.seq <= hi);
}

function isMessage(value: LogMessage): boolean {
  const isText = (one: unknown) => one === null || typeof one === 'string';
  const isTime = (one: unknown) => one === null || isCount(one);
  const { seq, ts, from, cid, rev, body, edited, deleted } = value ?? {};
  return (
    isCount(seq) &&
    isCount(ts) &&
    isPeer(from) &&
    isCount(rev) &&
    isText(cid) &&
    isText(body) &&
    isTime(edited) &&
    isTime(deleted)
  );
}

export interface KeeperParts {
  store: Store;
  clock: Clock;
  engine: Engine;
  model: Model;
  /** The store is of no use any more. */
  lost(reason: string): void;
}

export class Keeper {
  readonly #parts: KeeperParts;
  #dirty = new Set<string>();
  #isOpen = false;
  #isTimed = false;
  #saving: Promise<void> | null = null;

  constructor(parts: KeeperParts) {
    this.#parts = parts;
  }

  /** What was stored; empty where there is no store. Takes at most `OPEN_MS_MAX`. */
  async open(scope: string): Promise<Records> {
    const { store, clock } = this.#parts;
    let timer: unknown;
    try {
      this.#isOpen = true;
      const late = new Promise<never>((_, reject) => {
        timer = clock.set(() => reject(new Error('timeout')), OPEN_MS_MAX);
      });
      return await Promise.race([store.open(scope, (reason) => this.lose(reason)), late]);
    } catch (error) {
      this.lose(reasonOf(error));
      return new Map();
    } finally {
      clock.clear(timer);
    }
  }

  /** Something of this peer, or of all, is another. */
  touch(peer: string | null, what: 'c' | 'o' = 'c'): void {
    if (!this.#isOpen) return;
    this.#dirty.add(META);
    if (peer !== null) this.#dirty.add(`${what}/${peer}`);
    if (this.#isTimed) return;
    this.#isTimed = true;
    this.#parts.clock.set(() => void this.flush(), SAVE_DELAY_MS);
  }

  /** Nothing of what is stored holds any more. */
  touchAll(peers: Iterable<string>): void {
    for (const peer of peers) {
      this.touch(peer);
      this.touch(peer, 'o');
    }
  }

  /** Resolves when all that changed so far is stored, or cannot be. */
  async flush(): Promise<void> {
    this.#isTimed = false;
    while (this.#saving) await this.#saving;
    if (!this.#isOpen || this.#dirty.size === 0) return;
    const { store, engine, model } = this.#parts;
    const changes = new Map([...this.#dirty].map((key) => [key, recordOf(key, engine, model)]));
    this.#dirty.clear();
    this.#saving = store.save(structuredClone(changes)).catch((error) => this.lose(reasonOf(error)));
    await this.#saving;
    this.#saving = null;
  }

  /** The same, but not for ever. */
  stored(): Promise<void> | null {
    if (!this.#isOpen) return null;
    return Promise.race([this.flush(), new Promise<void>((resolve) => this.#parts.clock.set(resolve, STORED_MS_MAX))]);
  }

  lose(reason: string): void {
    if (!this.#isOpen) return;
    this.close();
    this.#parts.lost(reason);
  }

  close(): void {
    if (this.#isOpen) this.#parts.store.close();
    this.#isOpen = false;
    this.#dirty = new Set();
  }
}

function reasonOf(error: unknown): string {
  const { name, message } = (error ?? {}) as { name?: unknown; message?: unknown };
  return name === 'Error' || typeof name !== 'string' ? String(message ?? error) : name;
}
