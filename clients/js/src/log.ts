/**
 * What this device holds of one conversation's log: an unbroken run of seqs, and the messages in it as they stand.
 *
 *      floor ... (not held, `more`) ... lo ═══════ run ═══════ hi = the place of places.ts
 *                      ◄─ history pages ─┘                └─ entries, one by one ─►
 *
 *      floor ... lo ═══ run ═══ hi ... (not held, `apart`) ... last ... the place
 *                                 └─ history pages ─►
 *
 * A run may end before the log does: where somebody reads who was away while much was said. Then entries go on to come,
 * but only the last message is kept of what lies beyond, and the run grows by pages until it has reached the log's end.
 *
 * Pages and pushes come in any order; the rev rule of docs/protocol.md section 4 makes them agree: of each message the
 * state with the highest `rev` stands, and changes of messages that are not held yet are kept for when they come. What a
 * dup `ok` tells stands outside the order: it is known, but extends no run.
 *
 * Pure. Messages are never changed: another state is another object.
 */

import type { Entry, HistoryPage } from './frames.js';

interface State {
  readonly rev: number;
  /** Null where it was deleted. */
  readonly body: string | null;
  readonly edited: number | null;
  readonly deleted: number | null;
}

export interface LogMessage extends State {
  readonly seq: number;
  readonly ts: number;
  readonly from: string;
  readonly cid: string | null;
}

/** What is stored of a log: its run, the last messages of it, and changes that wait for theirs. */
export interface SavedLog {
  lo: number | null;
  hi: number | null;
  floor: number;
  head: number;
  messages: LogMessage[];
}

export class Log {
  floor = 1;
  head = 0;
  /** The run, both ends included; null: nothing is held. */
  lo: number | null = null;
  hi: number | null = null;
  /** The server said that nothing older is kept. */
  #isEnded = false;
  #isApart = false;
  /** What is held from here on may have changed since; pages from here on tell. */
  #unsure: number | null = null;
  /** The last message beyond the run, if it is known. */
  #beyond: LogMessage | null = null;
  /** The log's last message was asked for, whether it is beyond the run or in it. */
  #hasEnd = false;
  readonly #held = new Map<number, LogMessage>();
  /** Newest change of each message that is not held. */
  readonly #changes = new Map<number, State>();
  /** What `messages` gives. While it is known, a message is put where it belongs: a log may hold thousands. */
  #sorted: LogMessage[] | null = null;
  /** Another one after each change of what `messages` gives. */
  version = 0;

  /** Whether older entries can be fetched. */
  get more(): boolean {
    return !this.#isEnded && (this.lo === null ? this.head >= this.floor : this.lo > this.floor);
  }

  /** The run ends before the log does. */
  get apart(): boolean {
    return this.#isApart && this.hi !== null;
  }

  /** Whether newer entries can be fetched. */
  get isBehind(): boolean {
    return this.apart || (this.#unsure !== null && this.hi !== null);
  }

  /** Where the next newer page starts: it is asked for as "after". */
  get after(): number {
    return this.#unsure === null ? (this.hi ?? 0) : this.#unsure - 1;
  }

  /** Nothing at all is held of a log that has something. */
  get blank(): boolean {
    return this.lo === null && this.more;
  }

  /** Whether even the log's last message has yet to be fetched. */
  get isEndUnknown(): boolean {
    return this.apart && this.#beyond === null && !this.#hasEnd;
  }

  /** The last message, whether it is in the run or beyond it. */
  get last(): LogMessage | null {
    const own = this.messages().at(-1) ?? null;
    return this.#beyond !== null && this.#beyond.seq > (own?.seq ?? 0) ? this.#beyond : own;
  }

  /** The messages of the run, and what is known behind it if it is not apart, in order of seq. */
  messages(): readonly LogMessage[] {
    if (this.#sorted === null) {
      this.version += 1;
      const from = this.lo ?? 0;
      const to = this.apart ? (this.hi ?? 0) : Infinity;
      this.#sorted = [...this.#held.values()]
        .filter(({ seq }) => seq >= from && seq <= to)
        .sort((a, b) => a.seq - b.seq);
    }
    return this.#sorted;
  }

  /** One entry as it was pushed or answered. */
  take(entry: Entry, how: 'live' | 'dup'): void {
    const { seq } = entry;
    if (this.apart && seq > (this.hi ?? 0)) {
      this.head = Math.max(this.head, seq);
      // A dup is one that is known, not the last one; its own entry came, or comes yet.
      if (how === 'live' || this.#beyond !== null) this.#past(entry);
      return;
    }
    if (how === 'live') {
      if (this.hi !== null && seq > this.hi + 1) this.#drop();
      if (this.hi === null) {
        this.lo = seq;
        this.#sorted = null;
      }
      this.hi = Math.max(this.hi ?? 0, seq);
      this.head = Math.max(this.head, seq);
    }
    this.#apply(entry);
  }

  /**
   * One page of history, given that it was asked for as "before the run" or as the newest, or, with `isNewer`, as "after
   * `after`". False: it does not join the run (which moved meanwhile) and nothing was taken.
   */
  page({ entries, more, head, floor }: HistoryPage, isNewer = false): boolean {
    this.head = Math.max(this.head, head);
    this.#raiseFloor(floor);
    const first = entries[0]?.seq;
    const last = entries.at(-1)?.seq;
    if (first === undefined || last === undefined) {
      if (!isNewer) this.#isEnded = !more;
      else if (!more) this.#reached();
      return true;
    }
    if (this.lo !== null && this.hi !== null && (first > this.hi + 1 || last < this.lo - 1)) return false;
    if (!isNewer && (this.lo === null || first <= this.lo)) this.#isEnded = !more;
    this.lo = Math.min(this.lo ?? first, first);
    this.hi = Math.max(this.hi ?? last, last);
    this.#sorted = null;
    for (const entry of entries) this.#apply(entry);
    if (isNewer && this.#unsure !== null && last >= this.#unsure) this.#unsure = last < this.hi ? last + 1 : null;
    if (this.#unsure === null && this.hi >= this.head) this.#reached();
    return true;
  }

  /** The run starts anew with this page, from anywhere in the log. */
  restart(page: HistoryPage, isNewer = false): void {
    this.forgetRun();
    this.page(page, isNewer);
    this.#isApart = this.hi !== null && this.hi < this.head; // what was pushed meanwhile is not in it
  }

  /** The run has come to the end of the log. */
  #reached(): void {
    this.#isApart = this.#hasEnd = false;
    this.#unsure = this.#beyond = this.#sorted = null;
  }

  /**
   * A listed one (docs/protocol.md section 3). `isKept`: the run goes on. Where it does not, `stays` leaves it as it is,
   * apart, because somebody is reading it.
   */
  listed({ head, floor }: { head: number; floor: number }, isKept: boolean, stays = false): void {
    if (stays && this.hi !== null) {
      this.#isApart = this.hi < head;
      this.#unsure = this.lo;
      this.#beyond = null;
      this.#hasEnd = false;
    } else if (!isKept) this.drop();
    this.head = head;
    this.#raiseFloor(floor);
  }

  /** Retention took what is below. */
  #raiseFloor(floor: number): void {
    this.floor = Math.max(this.floor, floor);
    for (const seq of this.#held.keys()) if (seq < this.floor) this.#held.delete(seq);
    if (this.hi !== null && this.hi < this.floor - 1) {
      this.lo = this.hi = this.#unsure = null;
      this.#isApart = false;
    } else if (this.lo !== null) this.lo = Math.max(this.lo, this.floor);
    if (this.#unsure !== null) this.#unsure = Math.max(this.#unsure, this.floor);
    this.#sorted = null;
  }

  /** Forgets all but the newest `keep` messages; they can be fetched again. */
  trim(keep: number): void {
    const lo = this.messages().at(-keep)?.seq;
    if (lo === undefined || this.lo === null || lo <= this.lo) return;
    this.lo = lo;
    for (const seq of this.#held.keys()) if (seq < lo) this.#held.delete(seq);
    for (const ref of this.#changes.keys()) if (ref < this.floor) this.#changes.delete(ref);
    this.#isEnded = false;
    if (this.#unsure !== null) this.#unsure = Math.max(this.#unsure, lo);
    this.#sorted = null;
  }

  /** Another log stands here, or what is held has a hole. */
  drop(): void {
    this.floor = 1;
    this.head = 0;
    this.#drop();
  }

  /**
   * The newest page, for its last message alone. That may be in the run, with nothing but changes beyond: then the page
   * tells their text with it.
   */
  end({ entries, head }: HistoryPage): void {
    this.head = Math.max(this.head, head);
    if (!this.apart) return;
    this.#hasEnd = true;
    for (const entry of entries) {
      if (entry.seq > (this.hi ?? 0)) this.#past(entry);
      else this.#apply(entry);
    }
  }

  /** The run goes, the rest stays: what is wanted of it can be fetched. */
  forgetRun(): void {
    const end = this.hi === null || this.apart ? this.#beyond : this.last;
    this.#drop();
    this.#beyond = end;
  }

  /** For storage: what a run that ends with the log holds, at most `keep` messages of it. */
  save(keep: number): SavedLog {
    const { lo, hi, floor, head } = this;
    const messages = this.messages().slice(-keep);
    if (lo === null || hi === null || this.isBehind) return { lo: null, hi: null, floor, head, messages: [] };
    const first = this.messages().length > keep ? messages[0]?.seq : lo;
    return { lo: first ?? lo, hi, floor, head, messages: messages.filter(({ seq }) => seq >= lo) };
  }

  load({ lo, hi, floor, head, messages }: SavedLog): void {
    this.#drop();
    Object.assign(this, { lo, hi, floor, head });
    for (const message of messages) this.#held.set(message.seq, message);
  }

  #drop(): void {
    this.lo = this.hi = null;
    this.#isEnded = false;
    this.#reached();
    this.#held.clear();
    this.#changes.clear();
  }

  #apply(entry: Entry): void {
    const { seq, ts, kind, ref, body = null } = entry;
    if (kind === 'message') {
      const held = this.#held.get(seq);
      const change = this.#changes.get(seq);
      this.#changes.delete(seq);
      const told = messageOf(entry);
      this.#hold(newer(newer(told, held), change), held?.cid ?? told.cid);
    } else if ((kind === 'edit' || kind === 'delete') && ref !== undefined) {
      const isEdit = kind === 'edit';
      // Deleted since, which its own entry tells; or past retention, where what is held is all there is.
      if (isEdit && body === null) return;
      const state = { rev: seq, body: isEdit ? body : null, edited: isEdit ? ts : null, deleted: isEdit ? null : ts };
      if (this.#beyond?.seq === ref) this.#beyond = newer(this.#beyond, state);
      const message = this.#held.get(ref);
      if (message) this.#hold(newer(message, state), message.cid);
      else if (seq > (this.#changes.get(ref)?.rev ?? -1)) this.#changes.set(ref, state);
    }
  }

  #hold(message: LogMessage, cid: string | null): void {
    const had = this.#held.get(message.seq);
    if (had && had.rev === message.rev && had.cid === cid) return;
    const held = message.cid === cid ? message : { ...message, cid };
    this.#held.set(message.seq, held);
    this.version += 1;
    if (this.#sorted !== null && !this.#put(this.#sorted, held, had)) this.#sorted = null;
  }

  /** In its place among the sorted ones. False: it has none there, or one in the middle. */
  #put(sorted: LogMessage[], message: LogMessage, had: LogMessage | undefined): boolean {
    const { seq } = message;
    const isIn = seq >= (this.lo ?? 0) && (!this.apart || seq <= (this.hi ?? 0));
    if (!had && isIn && seq > (sorted.at(-1)?.seq ?? 0)) sorted.push(message);
    else {
      const at = had && isIn ? sorted.lastIndexOf(had) : -1;
      if (at < 0) return false;
      sorted[at] = message;
    }
    return true;
  }

  /** Beyond the run: the last message is known, and changes of those that are held or will be. */
  #past(entry: Entry): void {
    if (entry.kind !== 'message') this.#apply(entry);
    else if (entry.seq > (this.#beyond?.seq ?? 0)) this.#beyond = messageOf(entry);
  }
}

function messageOf({ seq, ts, from, cid, rev, body, edited, deleted }: Entry): LogMessage {
  return {
    seq,
    ts,
    from,
    cid: cid ?? null,
    rev: rev ?? 0,
    body: body ?? null,
    edited: edited ?? null,
    deleted: deleted ?? null,
  };
}

/** The highest rev wins; two of the same rev are the same, so the one that is held stays. */
function newer(message: LogMessage, state: State | undefined): LogMessage {
  if (!state || state.rev < message.rev) return message;
  const { rev, body, edited, deleted } = state;
  return { ...message, rev, body, edited, deleted };
}
