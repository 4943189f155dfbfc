/**
 * All that is shown, as plain data: conversations, presence, typing, the state of the line. It hears what the engine
 * emits, its own or another tab's.
 *
 *      engine.ts ──event──► Model ──touched──► views.ts ──snapshots──► application
 *
 * Invariants: unread is the server's number, moved by what comes after it and by read cursors; a presence with a lower
 * `v` replaces nothing on one connection; typing ends by itself.
 *
 * Without I/O: durations come from the client's clock.
 */

import type { ChatClient } from './client.js';
import type { Line } from './dial.js';
import type { EngineEvent, ResetReason } from './events.js';
import type { Entry, HistoryPage, Item, Status } from './frames.js';
import { Log, type LogMessage } from './log.js';
import type { Held, Named } from './parts.js';
import { TYPING_EXPIRES_MS } from './wire.js';

/** A conversation that nobody looks at keeps this many messages. */
export const MESSAGES_KEPT = 200;

/** What changed: one conversation, one person, or what all share. */
export type Touched = { what: 'line' | 'list' | 'outbox' } | { what: 'messages' | 'presence' | 'typing'; peer: string };

/** One conversation. `mine`, `theirs`: an entry of that side is known. What a listing says has its names. */
export class Chat {
  readonly peer: string;
  c: string | null = null;
  ts: number;
  readonly log = new Log();
  delivered = 0;
  read = 0;
  peer_delivered = 0;
  peer_read = 0;
  unread = 0;
  /** `unread` counts entries up to here. */
  countedTo = 0;
  /** What is unread up to here had come before this device heard of it: nobody saw it come. */
  missedTo = 0;
  listedOpen = false;
  mine = false;
  theirs = false;

  constructor(peer: string, ts: number) {
    this.peer = peer;
    this.ts = ts;
  }

  /** What a server says of it, or what was stored of that. */
  list({ ts, delivered, read, peer_delivered, peer_read, unread, open, head }: Item): void {
    Object.assign(this, { ts, delivered, read, peer_delivered, peer_read, unread, listedOpen: open, countedTo: head });
  }

  /** Both have sent: presence, typing and receipts flow. */
  get open(): boolean {
    return this.listedOpen || (this.mine && this.theirs);
  }
}

export class Model implements Held {
  readonly #client: ChatClient;
  user: string;
  line: Line = { state: 'stopped', reason: '', retryAt: 0 };
  /** By peer. */
  readonly chats = new Map<string, Chat>();
  readonly people = new Map<string, Status>();
  /** The last sign of each peer: a later one makes the end of an earlier one void. */
  readonly typing = new Map<string, number>();
  #signs = 0;

  constructor(client: ChatClient) {
    this.#client = client;
    this.user = client.user;
  }

  /** Nothing is known any more: another user. */
  forget(): void {
    const known = [...this.chats.keys()];
    const people = [...this.people.keys()];
    this.user = '';
    this.chats.clear();
    this.people.clear();
    for (const peer of known) this.changed(peer);
    for (const peer of people) this.#client._views.touched({ what: 'presence', peer });
    this.#client._views.touched({ what: 'list' });
    this.#client._views.touched({ what: 'outbox' });
  }

  /** The one with `peer`, made if need be. */
  with(peer: string): Chat {
    let chat = this.chats.get(peer);
    if (!chat) {
      chat = new Chat(peer, this.#client.now());
      this.chats.set(peer, chat);
    }
    return chat;
  }

  find(peer: string, { seq, cid }: Named): Named | undefined {
    const messages = this.chats.get(peer)?.log.messages();
    return messages?.find((message) => (seq === null ? message.cid === cid : message.seq === seq));
  }

  reach(peer: string, seq: number): 'sent' | 'delivered' | 'read' {
    const { peer_read = 0, peer_delivered = 0 } = this.chats.get(peer) ?? {};
    if (seq <= peer_read) return 'read';
    return seq <= peer_delivered ? 'delivered' : 'sent';
  }

  /** Something of a conversation is another. */
  changed(peer: string): void {
    this.#client._views.touched({ what: 'messages', peer });
    this.#client._views.touched({ what: 'list' });
  }

  take(event: EngineEvent): void {
    if (event.t === 'line') {
      this.line = event.line;
      this.#client._views.touched({ what: 'line' });
      for (const peer of this.people.keys()) this.#client._views.touched({ what: 'presence', peer });
    } else if (event.t === 'welcome') this.user = event.user;
    else if (event.t === 'reset') this.#reset(event.why);
    else if (event.t === 'item') this.#item(event.item, event.isKept);
    else if (event.t === 'entry') this.#entry(event.entry, event.how);
    else if (event.t === 'receipt') this.#receipt(event);
    else if (event.t === 'presence') this.#presence(event.list, event.isAll);
    else if (event.t === 'typing') this.#typing(event.from);
    else if (event.t === 'outbox') {
      this.#client._views.touched({ what: 'outbox' });
      this.with(event.peer);
      this.changed(event.peer);
    }
  }

  /** A page of history came. False: it does not join what is held, and is to be asked for again. */
  page(peer: string, page: HistoryPage, how: 'older' | 'newer' | 'anew' | 'from' | 'end'): boolean {
    const chat = this.with(peer);
    let isJoined = true;
    if (how === 'anew' || how === 'from') chat.log.restart(page, how === 'from');
    else if (how === 'end') chat.log.end(page);
    else isJoined = chat.log.page(page, how === 'newer');
    if (isJoined) for (const entry of page.entries) this.#sides(chat, entry);
    this.#recount(chat);
    this.changed(peer);
    return isJoined;
  }

  /** The user has seen everything up to `seq`: shown at once, before the server says so. */
  see(peer: string, seq: number): void {
    const chat = this.chats.get(peer);
    if (chat) this.#readTo(chat, seq);
  }

  /** Another epoch: nothing of the logs holds. */
  #reset(why: ResetReason): void {
    if (why !== 'epoch') this.forget();
    for (const [peer, old] of this.chats) {
      if (this.#client._engine.outbox.of(peer).length > 0) this.chats.set(peer, new Chat(peer, old.ts));
      else this.chats.delete(peer);
      this.changed(peer);
    }
  }

  #item(item: Item, isKept: boolean): void {
    const chat = this.with(item.peer);
    chat.c = item.c;
    const seen = item.reset ? 0 : Math.min(chat.read, item.head);
    chat.list(item);
    chat.missedTo = item.head;
    if (item.peer === this.user) chat.unread = 0;
    // Seen here, and not told yet. Before the run may go, because that says how many these were.
    this.#readTo(chat, seen);
    const stays =
      !isKept && !item.reset && this.#client._views.isWatched(item.peer) && (chat.log.hi ?? Infinity) <= item.head;
    chat.log.listed(item, isKept, stays);
    this.changed(item.peer);
  }

  #entry(entry: Entry, how: 'live' | 'dup'): void {
    const { c, seq, ts, kind } = entry;
    const isOwn = entry.from === this.user;
    const peer = isOwn ? entry.to : entry.from;
    const chat = this.with(peer);
    chat.ts = chat.c === null ? ts : Math.max(chat.ts, ts);
    chat.c = c;
    chat.log.take(entry, how);
    this.#sides(chat, entry);
    if (!isOwn) this.#endTyping(peer);
    if (how === 'live' && seq > chat.countedTo) {
      chat.countedTo = seq;
      if (!isOwn && kind === 'message' && seq > chat.read) chat.unread += 1;
    }
    if (chat.log.messages().length > 2 * MESSAGES_KEPT && !this.#client._views.isWatched(peer))
      chat.log.trim(MESSAGES_KEPT);
    this.changed(peer);
  }

  #receipt({ peer, from, delivered, read }: EngineEvent & { t: 'receipt' }): void {
    const chat = this.chats.get(peer);
    if (!chat) return;
    if (from === this.user) {
      chat.delivered = Math.max(chat.delivered, delivered);
      this.#readTo(chat, read);
    } else {
      chat.peer_delivered = Math.max(chat.peer_delivered, delivered, read);
      chat.peer_read = Math.max(chat.peer_read, read);
      this.changed(chat.peer);
    }
  }

  #presence(list: Status[], isAll: boolean): void {
    const old = isAll ? [...this.people.keys()] : [];
    if (isAll) this.people.clear(); // a snapshot is the truth, also over a server that counts anew
    for (const status of list) {
      if (status.v >= (this.people.get(status.user)?.v ?? 0)) this.people.set(status.user, status);
    }
    for (const peer of new Set([...old, ...list.map(({ user }) => user)]))
      this.#client._views.touched({ what: 'presence', peer });
  }

  #typing(from: string): void {
    if (from === this.user) return;
    this.#signs += 1;
    const sign = this.#signs;
    this.typing.set(from, sign);
    this.#client._views.touched({ what: 'typing', peer: from });
    this.#client._clock.set(() => this.typing.get(from) === sign && this.#endTyping(from), TYPING_EXPIRES_MS);
  }

  #endTyping(peer: string): void {
    if (this.typing.delete(peer)) this.#client._views.touched({ what: 'typing', peer });
  }

  #sides(chat: Chat, { from }: Entry): void {
    if (from === this.user) chat.mine = true;
    else chat.theirs = true;
  }

  /** Unread falls by what the cursor passes, as far as that is held. */
  #readTo(chat: Chat, seq: number): void {
    if (seq <= chat.read) return;
    const passed = this.#theirs(chat, chat.read, seq);
    chat.unread = seq >= chat.countedTo ? 0 : Math.max(0, chat.unread - passed);
    chat.read = seq;
    chat.delivered = Math.max(chat.delivered, seq);
    this.#recount(chat);
    this.changed(chat.peer);
  }

  /** Where all that is unread is held, it is counted. */
  #recount(chat: Chat): void {
    const { lo, hi } = chat.log;
    if (lo === null || hi === null || lo > chat.read + 1 || hi < chat.countedTo) return;
    chat.unread = this.#theirs(chat, chat.read, Infinity);
  }

  /** How many held messages of the peer are after one seq, up to another. From the end: few are unread of many. */
  #theirs({ peer, log }: Chat, after: number, to: number): number {
    if (peer === this.user) return 0;
    const messages = log.messages();
    let count = 0;
    for (let i = messages.length - 1; i >= 0; i -= 1) {
      const { seq, from } = messages[i] as LogMessage;
      if (seq <= after) break;
      if (seq <= to && from === peer) count += 1;
    }
    return count;
  }
}
