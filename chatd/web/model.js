/**
 * All that the page shows, as plain data: conversations, presence, typing, the state of the line. It is the `Sink` of client.js.
 *
 *      client.js ──Sink calls──► Model ──changed()──► app.js ──► views (which read, and write nothing here)
 *
 * Invariants: unread is the server's number, moved by what comes after it and by read cursors; a presence with a lower `v` replaces
 * nothing on one connection; typing ends by itself after 6 s of `now`. Logs are log.js's, rows for the screen rows.js's.
 *
 * Pure: the time comes from `now`, what waits in the outbox from `pending`.
 */

import { Log } from './log.js';
import { LIMITS, TYPING_EXPIRES_MS } from './wire.js';

/** A conversation that is not on the screen keeps this many messages. */
export const MESSAGES_KEPT = 200;

/** @typedef {import('./wire.js').Entry} Entry */
/** @typedef {import('./wire.js').Item} Item */
/** @typedef {import('./outbox.js').OutboxItem} OutboxItem */
/** @typedef {import('./dial.js').Status} Status */
/** @typedef {'status'|'list'|'pane'|'presence'} Topic */
/** @typedef {{state: string, v: number, seen: number|null}} Presence */

/** One conversation. `mine`, `theirs`: an entry of that side is known. */
export class Conversation {
  /** @param {string} peer  @param {number} ts */
  constructor(peer, ts) {
    this.peer = peer;
    /** @type {string|null} */
    this.c = null;
    this.ts = ts;
    this.log = new Log();
    this.delivered = 0;
    this.read = 0;
    this.peerDelivered = 0;
    this.peerRead = 0;
    this.unread = 0;
    /** `unread` counts entries up to here. */
    this.countedTo = 0;
    /** What is unread up to here had come before this device heard of it: nobody saw it come. */
    this.missedTo = 0;
    this.listedOpen = false;
    this.mine = false;
    this.theirs = false;
    this.typingUntil = 0;
  }

  /** Both have sent: presence and typing flow. */
  get open() {
    return this.listedOpen || (this.mine && this.theirs);
  }
}

export class Model {
  /**
   * @param {{now: () => number, changed: (topic: Topic, peer?: string) => void, pending: (peer: string) => OutboxItem[],
   *   store?: (peer: string) => void, dropped?: (items: OutboxItem[]) => void, welcomed?: (frame: any) => void,
   *   arrived?: (entry: Entry) => void}} parts
   * `now` is the server's time. `store` is told that a queue of the outbox changed, `dropped` what a restored server took away,
   * `arrived` each new message of a peer.
   */
  constructor({ now, changed, pending, store = () => {}, dropped = () => {}, welcomed = () => {}, arrived = () => {} }) {
    this.now = now;
    this.changed = changed;
    this.pending = pending;
    this.onOutbox = store;
    this.onDropped = dropped;
    this.onWelcome = welcomed;
    this.onArrival = arrived;
    this.forget();
  }

  /** Nobody is signed in. */
  forget() {
    this.user = '';
    this.limits = LIMITS;
    /** @type {Status} */
    this.line = { state: 'idle', reason: '', retryAt: 0 };
    /** A welcome was complete since the user signed in. */
    this.known = false;
    /** @type {string|null} the conversation on the screen */
    this.shown = null;
    /** @type {Map<string, Conversation>} peer -> conversation */
    this.conversations = new Map();
    /** @type {Map<string, Conversation>} c -> conversation */
    this.byId = new Map();
    /** @type {Map<string, Presence>} */
    this.people = new Map();
    this.changed('status');
    this.changed('list');
    this.changed('pane');
  }

  // --- what the views ask -------------------------------------------------------------------------------------------

  get isLive() {
    return this.line.state === 'live' || this.line.state === 'draining';
  }

  /** The one with `peer`, made if need be. @param {string} peer */
  with(peer) {
    let it = this.conversations.get(peer);
    if (!it) {
      it = new Conversation(peer, this.now());
      this.conversations.set(peer, it);
      this.changed('list');
    }
    return it;
  }

  /** The latest first; what waits in the outbox counts. @returns {Conversation[]} */
  sorted() {
    return [...this.conversations.values()].map((it) => ({ it, at: this.#lastAt(it) }))
      .sort((a, b) => b.at - a.at || (a.it.peer < b.it.peer ? -1 : 1)).map(({ it }) => it);
  }

  /** @param {Conversation} it */
  #lastAt(it) {
    const waiting = this.pending(it.peer);
    return Math.max(it.ts, waiting.length > 0 ? waiting[waiting.length - 1].at : 0);
  }

  /** Null: not known, or not to be seen. @param {string} user @returns {Presence|null} */
  presenceOf(user) {
    const presence = this.people.get(user);
    return presence && this.isLive && presence.state !== 'hidden' ? presence : null;
  }

  /** @param {string} peer */
  isTyping(peer) {
    return (this.conversations.get(peer)?.typingUntil ?? 0) > this.now();
  }

  /** When the next typing sign ends, or null. */
  typingEnds() {
    const now = this.now();
    const times = [...this.conversations.values()].map((it) => it.typingUntil).filter((at) => at > now);
    return times.length > 0 ? Math.min(...times) : null;
  }

  /** @param {string} peer  @param {string} cid @returns {number|null} */
  seqOf(peer, cid) {
    return this.conversations.get(peer)?.log.messages().find((message) => message.cid === cid)?.seq ?? null;
  }

  unread() {
    let sum = 0;
    for (const it of this.conversations.values()) sum += it.unread;
    return sum;
  }

  // --- what the user does -------------------------------------------------------------------------------------------

  /** The user has seen everything up to `seq`: shown at once, before the server says so. @param {string} peer  @param {number} seq */
  see(peer, seq) {
    const it = this.conversations.get(peer);
    if (it) this.#readTo(it, seq);
  }

  /** Another conversation, or none, is on the screen. @param {string|null} peer */
  show(peer) {
    if (peer === this.shown) return;
    const left = this.shown === null ? undefined : this.conversations.get(this.shown);
    this.shown = peer;
    if (left) {
      if (left.log.apart) left.log.forgetRun();
      else left.log.trim(MESSAGES_KEPT);
      if (!this.#isWanted(left)) this.conversations.delete(left.peer);
    }
    if (peer !== null) this.with(peer);
    this.changed('list');
    this.changed('pane');
  }

  /** Nobody has written in it, and nobody looks at it: then it is not shown. @param {Conversation} it */
  #isWanted(it) {
    return it.c !== null || it.peer === this.shown || this.pending(it.peer).length > 0;
  }

  /** A page of history came. @param {string} peer  @param {any} page  @param {boolean} [newer] asked for as "after" @returns {boolean} whether it could be used */
  page(peer, page, newer = false) {
    const joined = this.with(peer).log.page(page, newer);
    this.#paged(peer, joined ? page : { entries: [] });
    return joined;
  }

  /** The same in place of what is held. @param {string} peer  @param {any} page  @param {boolean} newer */
  restart(peer, page, newer) {
    this.with(peer).log.restart(page, newer);
    this.#paged(peer, page);
  }

  /** The newest page, where the run is to stay as it is. @param {string} peer  @param {any} page */
  end(peer, page) {
    this.with(peer).log.end(page);
    this.#paged(peer, page);
  }

  /** @param {string} peer  @param {{entries: Entry[]}} page */
  #paged(peer, { entries }) {
    const it = this.with(peer);
    for (const entry of entries) this.#sides(it, entry);
    this.#recount(it);
    this.#changedIn(it);
  }

  // --- Sink ---------------------------------------------------------------------------------------------------------

  /** @param {Status} line */
  status(line) {
    const was = this.isLive;
    this.line = line;
    this.changed('status');
    if (was !== this.isLive) this.changed('presence');
  }

  /** @param {any} frame the first page of a welcome */
  welcome(frame) {
    if (this.user !== '' && frame.user !== this.user) {
      this.conversations.clear();
      this.byId.clear();
      this.shown = null;
    }
    this.user = frame.user;
    this.limits = { ...LIMITS, ...frame.limits };
    this.people.clear(); // the snapshot that comes next is the truth, also over a server that counts anew
    this.onWelcome(frame);
    this.changed('status');
    this.changed('presence');
  }

  /** Another epoch: nothing of the logs holds. */
  reset() {
    this.byId.clear();
    for (const [peer, old] of this.conversations) {
      const anew = new Conversation(peer, old.ts);
      if (this.#isWanted(anew)) this.conversations.set(peer, anew);
      else this.conversations.delete(peer);
    }
    this.people.clear();
    this.changed('list');
    this.changed('pane');
  }

  /** @param {Item} item  @param {boolean} kept */
  item(item, kept) {
    const it = this.with(item.peer);
    this.#name(it, item.c);
    const isReset = item.reset === true;
    const seen = isReset ? 0 : Math.min(it.read, item.head);
    it.ts = item.ts;
    it.delivered = item.delivered;
    it.read = item.read;
    it.peerDelivered = item.peer_delivered;
    it.peerRead = item.peer_read;
    it.unread = item.peer === this.user ? 0 : item.unread;
    it.countedTo = it.missedTo = item.head;
    it.listedOpen = item.open;
    this.#readTo(it, seen); // seen here, and not told yet. Before the run may go, because that says how many these were
    it.log.listed(item, kept, !kept && item.peer === this.shown && !isReset && (it.log.hi ?? Infinity) <= item.head);
    this.#changedIn(it);
  }

  synced() {
    this.known = true;
    this.changed('status');
    this.changed('list');
    this.changed('pane');
  }

  /** @param {Entry} entry  @param {'live'|'dup'} how */
  entry(entry, how) {
    const own = entry.from === this.user;
    const it = this.with(own ? entry.to : entry.from);
    it.ts = it.c === null ? entry.ts : Math.max(it.ts, entry.ts);
    if (entry.c !== undefined) this.#name(it, entry.c);
    it.log.take(entry, how);
    this.#sides(it, entry);
    if (!own) it.typingUntil = 0;
    if (how === 'live' && entry.seq > it.countedTo) {
      it.countedTo = entry.seq;
      if (!own && entry.kind === 'message' && entry.seq > it.read) {
        it.unread += 1;
        this.onArrival(entry);
      }
    }
    this.#changedIn(it);
  }

  /** @param {{c: string, from: string, delivered?: number, read?: number}} frame */
  cursors({ c, from, delivered = 0, read = 0 }) {
    const it = this.byId.get(c);
    if (!it) return;
    if (from === this.user) {
      it.delivered = Math.max(it.delivered, delivered);
      this.#readTo(it, read);
    } else {
      it.peerDelivered = Math.max(it.peerDelivered, delivered, read);
      it.peerRead = Math.max(it.peerRead, read);
      this.#changedIn(it);
    }
  }

  /** @param {{user: string, state: string, v: number, seen?: number}[]} list */
  presence(list) {
    for (const { user, state, v, seen = null } of list) {
      if (v < (this.people.get(user)?.v ?? 0)) continue;
      this.people.set(user, { state, v, seen });
      this.changed('presence', user);
    }
  }

  /** @param {{c?: string, from: string}} frame */
  typing({ from }) {
    if (from === this.user) return;
    const it = this.conversations.get(from);
    if (!it) return;
    it.typingUntil = this.now() + TYPING_EXPIRES_MS;
    this.changed('presence', from);
  }

  /** @param {string} peer */
  outbox(peer) {
    this.onOutbox(peer);
    this.#changedIn(this.with(peer));
  }

  /** @param {OutboxItem[]} items */
  dropped(items) {
    if (items.length > 0) this.onDropped(items);
  }

  // --- inside -------------------------------------------------------------------------------------------------------

  /** @param {Conversation} it  @param {string} c */
  #name(it, c) {
    it.c = c;
    this.byId.set(c, it);
  }

  /** @param {Conversation} it  @param {{from: string}} entry */
  #sides(it, { from }) {
    if (from === this.user) it.mine = true;
    else it.theirs = true;
  }

  /** Unread falls by what the cursor passes, as far as that is held. @param {Conversation} it  @param {number} seq */
  #readTo(it, seq) {
    if (seq <= it.read) return;
    const passed = this.#theirs(it).filter((message) => message.seq > it.read && message.seq <= seq).length;
    it.unread = seq >= it.countedTo ? 0 : Math.max(0, it.unread - passed);
    it.read = seq;
    it.delivered = Math.max(it.delivered, seq);
    this.#recount(it);
    this.#changedIn(it);
  }

  /** Where all that is unread is held, it is counted. @param {Conversation} it */
  #recount(it) {
    const { lo, hi } = it.log;
    if (lo === null || hi === null || lo > it.read + 1 || hi < it.countedTo) return;
    it.unread = this.#theirs(it).filter((message) => message.seq > it.read).length;
  }

  /** @param {Conversation} it */
  #theirs(it) {
    return it.peer === this.user ? [] : it.log.messages().filter(({ from }) => from === it.peer);
  }

  /** @param {Conversation} it */
  #changedIn(it) {
    this.changed('list', it.peer);
    this.changed('pane', it.peer);
  }
}
