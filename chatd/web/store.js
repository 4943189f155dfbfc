/**
 * What outlives a reload: this tab's name, device id, drafts (sessionStorage), and what is still to be sent (localStorage).
 *
 * Each tab is a device of its own, else a second tab would replace the first (close code 4004). A duplicated tab starts with a
 * copy of the other's sessionStorage, so a tab holds a web lock named after its device id and takes a new id when it finds it taken.
 * A tab that was closed with something unsent leaves its outbox behind; the next tab of that user takes it over. Should two tabs take
 * the same one, each cid is still done once: that is the server's promise.
 *
 * Storage may be full or forbidden: then nothing is kept, and `isKeeping` says so. It is also the user's to edit: what has no sense in it is passed
 * over, on the way in and out.
 */

import { isPeer } from './wire.js';

/** @typedef {ReturnType<import('./outbox.js').Outbox['save']>} Saved */
/** @typedef {{getItem(key: string): string|null, setItem(key: string, value: string): void, removeItem(key: string): void,
 *   key(i: number): string|null, readonly length: number}} Area */
/** @typedef {{request(name: string, options: any, held: (lock: any) => any): Promise<any>, query(): Promise<{held?: {name?: string}[]}>}} Locks */

const OUTBOX = 'chatd.outbox/';
const LOCK = 'chatd.device/';
const DRAFTS_MAX = 50;

export class Store {
  /** @param {{session: Area|null, local: Area|null, locks: Locks|null, uuid: () => string}} parts */
  constructor({ session, local, locks, uuid }) {
    this.session = session;
    this.local = local;
    this.locks = locks;
    this.uuid = uuid;
    this.device = '';
    this.isKeeping = true;
    /** @type {Set<string>} devices of other tabs that are open */
    this.others = new Set();
  }

  // --- this tab -----------------------------------------------------------------------------------------------------

  /** This tab's device id, nobody else's. Call once, before anything is kept. @returns {Promise<string>} */
  async claimDevice() {
    const had = this.#read(this.session, 'chatd.device');
    this.device = had !== null && (await this.#lock(had)) ? had : `web-${this.uuid()}`;
    if (this.device !== had) await this.#lock(this.device);
    this.#write(this.session, 'chatd.device', this.device);
    return this.device;
  }

  /** Held as long as the page lives. @param {string} device  @returns {Promise<boolean>} */
  async #lock(device) {
    const { locks } = this;
    if (!locks) return true;
    return new Promise((resolve) => {
      locks.request(LOCK + device, { ifAvailable: true }, (lock) => {
        resolve(lock !== null);
        return lock === null ? undefined : new Promise(() => {});
      }).catch(() => resolve(true));
    });
  }

  /** @param {'name'|'token'|'open'} what  @returns {string|null} */
  get(what) {
    return this.#read(this.session, `chatd.${what}`);
  }

  /** @param {'name'|'token'|'open'} what  @param {string|null} value */
  set(what, value) {
    this.#write(this.session, `chatd.${what}`, value);
  }

  /** @param {string} user @returns {Map<string, string>} peer -> text */
  drafts(user) {
    const all = this.#parse(this.#read(this.session, `chatd.drafts/${user}`));
    return new Map(Array.isArray(all) ? all.filter((pair) => Array.isArray(pair) && pair.length === 2 && isPeer(pair[0]) && isText(pair[1])) : []);
  }

  /** @param {string} user  @param {Map<string, string>} drafts */
  keepDrafts(user, drafts) {
    const some = [...drafts].filter(([peer, text]) => isPeer(peer) && text !== '').slice(-DRAFTS_MAX);
    this.#write(this.session, `chatd.drafts/${user}`, some.length > 0 ? JSON.stringify(some) : null);
  }

  // --- the outbox ---------------------------------------------------------------------------------------------------

  /** Finds out which tabs live, so that `takeOutbox` leaves theirs alone. Call before a sign-in. */
  async lookAround() {
    const held = this.locks ? (await this.locks.query().catch(() => ({ held: [] }))).held ?? [] : [];
    const devices = held.map(({ name = '' }) => name).filter((name) => name.startsWith(LOCK)).map((name) => name.slice(LOCK.length));
    this.others = new Set(devices.filter((device) => device !== this.device));
  }

  /**
   * What this tab, and closed tabs of the same user, had left to say. Kept under this tab's name from now on.
   * `epoch` is empty if not all of it comes from one.
   * @param {string} user  @returns {{epoch: string, items: Saved}}
   */
  takeOutbox(user) {
    const found = [];
    for (const key of this.#keys()) {
      const [device, name] = splitKey(key);
      if (name !== user || this.others.has(device)) continue;
      const saved = this.#parse(this.#read(this.local, key));
      if (Array.isArray(saved?.items)) found.push({ key, epoch: String(saved.epoch), items: saved.items.filter(isItem) });
    }
    const byCid = new Map(found.flatMap(({ items }) => items).map((item) => [item.cid, item]));
    const epochs = new Set(found.map(({ epoch }) => epoch));
    const all = { epoch: epochs.size === 1 ? found[0].epoch : '', items: [...byCid.values()] };
    // The new copy before the old ones go, because a crash in between may repeat a cid but must not lose one.
    if (found.length > 0) this.keepOutbox(user, all.epoch, all.items);
    for (const { key } of found) if (key !== this.#key(user)) this.#write(this.local, key, null);
    return all;
  }

  /** @param {string} user  @param {string} epoch  @param {Saved} items */
  keepOutbox(user, epoch, items) {
    const some = items.filter(isItem);
    this.isKeeping = this.#write(this.local, this.#key(user), some.length > 0 ? JSON.stringify({ epoch, items: some }) : null);
  }

  /** @param {string} user */
  #key(user) {
    return `${OUTBOX}${this.device}/${user}`;
  }

  #keys() {
    const keys = [];
    for (let i = 0; i < (this.local?.length ?? 0); i += 1) {
      const key = this.local?.key(i);
      if (key?.startsWith(OUTBOX)) keys.push(key);
    }
    return keys;
  }

  // --- storage that may fail ----------------------------------------------------------------------------------------

  /** @param {Area|null} area  @param {string} key */
  #read(area, key) {
    try {
      return area?.getItem(key) ?? null;
    } catch {
      return null;
    }
  }

  /** @param {Area|null} area  @param {string} key  @param {string|null} value  @returns {boolean} */
  #write(area, key, value) {
    try {
      if (value === null) area?.removeItem(key);
      else area?.setItem(key, value);
      return area !== null;
    } catch {
      return false;
    }
  }

  /** @param {string|null} text  @returns {any} */
  #parse(text) {
    try {
      return text === null ? null : JSON.parse(text);
    } catch {
      return null;
    }
  }
}

/** A device id has no slash; a user id may have. @param {string} key */
function splitKey(key) {
  const rest = key.slice(OUTBOX.length);
  const at = rest.indexOf('/');
  return [rest.slice(0, at), rest.slice(at + 1)];
}

/** @param {unknown} value */
function isText(value) {
  return typeof value === 'string';
}

/** @param {any} item */
function isItem(item) {
  return isPeer(item?.peer) && isText(item.cid) && ['message', 'edit', 'delete'].includes(item.kind)
    && (item.kind === 'delete' || isText(item.body)) && (item.refcid == null || isText(item.refcid))
    && (item.kind === 'message' || Number.isInteger(item.ref) || isText(item.refcid)) && Number.isFinite(item.at);
}
