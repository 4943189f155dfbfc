/**
 * The log of two people in the fake server: entries as they were made, and as they stand for a reader (section 4 of
 * docs/protocol.md).
 */
import type { Entry, Conversation as Item, ReceiptFrame } from '../generated/frames.js';

/** What one user has got and read. */
export interface Cursors {
  delivered: number;
  read: number;
}

const NOWHERE: Readonly<Cursors> = { delivered: 0, read: 0 };

/** One conversation. */
export class Log {
  /** Its name on the wire. */
  readonly c: string;
  /** The two; the same twice are notes to oneself. */
  readonly users: readonly [string, string];
  /** In order of seq, from `floor` on. */
  entries: Entry[] = [];
  /** The lowest seq still kept. */
  floor = 1;
  /** The highest seq, 0 if there is none. */
  head = 0;
  /** Time of the last entry. */
  ts = 0;
  /** When it last changed for both, by the server's count of changes. */
  changed = 0;
  /** The same, where only that user is told of it. */
  readonly moved = new Map<string, number>();
  readonly #cursors = new Map<string, Cursors>();
  readonly #authors = new Set<string>();

  /** Between these two. */
  constructor(c: string, users: readonly [string, string]) {
    this.c = c;
    this.users = users;
  }

  /** The other one, as seen by `user`. */
  peer(user: string): string {
    return this.users[0] === user ? this.users[1] : this.users[0];
  }

  /** Both have sent. */
  get open(): boolean {
    return this.users[0] === this.users[1] || this.#authors.size === 2;
  }

  /** Adds an entry behind the last; gives it. */
  add(made: Omit<Entry, 'seq' | 'ts'>, now: number): Entry {
    this.head += 1;
    this.ts = Math.max(this.ts, now);
    const entry: Entry = { seq: this.head, ts: this.ts, ...made };
    this.entries.push(entry);
    if (entry.kind === 'message') this.#authors.add(entry.from);
    return entry;
  }

  /** Retention: what lies below `floor` is gone. */
  retire(floor: number): void {
    this.floor = floor;
    this.entries = this.entries.filter(({ seq }) => seq >= floor);
  }

  /** A restore from a backup: what lies above `head` never was. */
  truncate(head: number): void {
    this.head = Math.min(this.head, head);
    this.entries = this.entries.filter(({ seq }) => seq <= head);
    for (const [user, { delivered, read }] of this.#cursors)
      this.#cursors.set(user, { delivered: Math.min(delivered, head), read: Math.min(read, head) });
  }

  /** The entry that this sender made with this cid. */
  made(from: string, cid: string): Entry | undefined {
    return this.entries.find((entry) => entry.cid === cid && entry.from === from);
  }

  /** The last change of a message, if there is one; a deletion is the last. */
  #change(seq: number): Entry | undefined {
    return this.entries.findLast(({ ref }) => ref === seq);
  }

  /** Whether that message was deleted. */
  isDeleted(seq: number): boolean {
    return this.#change(seq)?.kind === 'delete';
  }

  /** What `reader` sees of an entry when it is made: the cid is the author's. */
  fresh(entry: Entry, reader: string): Entry {
    const { cid, ...rest } = entry;
    return entry.from === reader && cid !== undefined ? { ...rest, cid } : rest;
  }

  /** What `reader` sees of it now. */
  standing(entry: Entry, reader: string): Entry {
    const seen = this.fresh(entry, reader);
    if (entry.kind === 'delete') return seen;
    const message = entry.kind === 'message' ? entry : this.entries.find(({ seq }) => seq === entry.ref);
    const change = message === undefined ? undefined : this.#change(message.seq);
    if (message === undefined) return { ...seen, body: null };
    if (change === undefined) return seen;
    seen.body = change.kind === 'delete' ? null : (change.body ?? null);
    if (entry.kind === 'edit') return seen;
    return { ...seen, rev: change.seq, ...(change.kind === 'delete' ? { deleted: change.ts } : { edited: change.ts }) };
  }

  /** A page of history, of entries in rising order: in it one text is told once. */
  page(entries: Entry[], reader: string): Entry[] {
    const told = new Set(entries.filter(({ kind }) => kind === 'message').map(({ seq }) => seq));
    const page: Entry[] = [];
    for (const entry of entries.toReversed()) {
      const seen = this.standing(entry, reader);
      if (seen.kind === 'edit' && seen.ref !== undefined) {
        if (told.has(seen.ref)) seen.body = null;
        told.add(seen.ref);
      }
      page.unshift(seen);
    }
    return page;
  }

  /** The run of entries that `history` gives, before it is made a page. */
  run(from: { before?: number; after?: number }, limit: number): { entries: Entry[]; more: boolean } {
    const { before = this.head + 1, after } = from;
    const wanted =
      after === undefined
        ? this.entries.filter(({ seq }) => seq < before).toReversed()
        : this.entries.filter(({ seq }) => seq > after);
    let messages = 0;
    const end = wanted.findIndex(({ kind }) => {
      messages += kind === 'message' ? 1 : 0;
      return messages > limit;
    });
    const entries = end < 0 ? wanted : wanted.slice(0, end);
    return { entries: after === undefined ? entries.toReversed() : entries, more: end >= 0 };
  }

  /** How far that user got. */
  cursors(user: string): Cursors {
    return this.#cursors.get(user) ?? NOWHERE;
  }

  /** Moves a cursor forward; whether that changed anything. */
  move(user: string, which: 'ack' | 'read', seq: number): boolean {
    const before = this.cursors(user);
    const delivered = Math.max(before.delivered, seq);
    const read = which === 'read' ? Math.max(before.read, seq) : before.read;
    this.#cursors.set(user, { delivered, read });
    return delivered !== before.delivered || read !== before.read;
  }

  /** What its peer is told of a user's cursors; nothing where there is nothing to tell. */
  receipt(from: string): ReceiptFrame | undefined {
    const at = this.#cursors.get(from);
    return at && { t: 'receipt', c: this.c, from, to: this.peer(from), ...at };
  }

  /** As `welcome` and `conversations` list it for a user. */
  item(user: string): Item {
    const theirs = this.open ? this.cursors(this.peer(user)) : NOWHERE;
    const own = this.cursors(user);
    const isUnread = ({ from, kind, seq }: Entry): boolean => from !== user && kind === 'message' && seq > own.read;
    return {
      c: this.c,
      peer: this.peer(user),
      head: this.head,
      floor: this.floor,
      ts: this.ts,
      delivered: own.delivered,
      read: own.read,
      peer_delivered: theirs.delivered,
      peer_read: theirs.read,
      unread: this.entries.filter(isUnread).length,
      open: this.open,
    };
  }
}
