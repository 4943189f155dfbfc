/**
 * What this device holds of one conversation's log: an unbroken run of seqs, and the messages in it as they stand.
 *
 *      floor ... (not held, `more`) ... lo ═══════ run ═══════ hi = the place of places.js
 *                      ◄─ history pages ─┘                └─ entries, one by one ─►
 *
 *      floor ... lo ═══ run ═══ hi ... (not held, `apart`) ... last ... the place
 *                                 └─ history pages ─►
 *
 * A run may end before the log does: where somebody reads who was away while much was said. Then entries go on to be told, but only the
 * last message is kept of what lies beyond, and the run grows by pages until it has reached the log's end.
 *
 * Pages and pushes come in any order; the rev rule of docs/protocol.md section 4 makes them agree: of each message the state
 * with the highest `rev` stands, and changes of messages that are not held yet are kept for when they come. What a dup
 * `ok` tells stands outside the order: it is known, but extends no run.
 *
 * Pure.
 */

/** @typedef {import('./wire.js').Entry} Entry */
/** @typedef {{rev: number, body: string|null, edited: number|null, deleted: number|null}} State */
/** @typedef {{seq: number, ts: number, from: string, cid: string|null} & State} Message */

export class Log {
  constructor() {
    this.floor = 1;
    this.head = 0;
    /** @type {number|null} the run, both ends included; null: nothing is held */
    this.lo = null;
    /** @type {number|null} */
    this.hi = null;
    /** The server said that nothing older is kept. */
    this.ended = false;
    this.isApart = false;
    /** @type {number|null} what is held from here on may have changed since; pages from here on tell */
    this.unsure = null;
    /** @type {Message|null} the last message beyond the run, if it is known */
    this.beyond = null;
    /** The log's last message was asked for, whether it is beyond the run or in it. */
    this.hasEnd = false;
    /** @type {Map<number, Message>} seq -> message */
    this.held = new Map();
    /** @type {Map<number, State>} ref -> newest change of a message that is not held */
    this.changes = new Map();
    /** @type {Message[]|null} */
    this.sorted = null;
  }

  /** Whether older entries can be fetched. */
  get more() {
    if (this.lo === null) return this.head >= this.floor && !this.ended;
    return this.lo > this.floor && !this.ended;
  }

  /** The run ends before the log does. */
  get apart() {
    return this.isApart && this.hi !== null;
  }

  /** Whether newer entries can be fetched. */
  get isBehind() {
    return this.apart || (this.unsure !== null && this.hi !== null);
  }

  /** Where the next newer page starts: it is asked for as "after". */
  get after() {
    return this.unsure === null ? this.hi ?? 0 : this.unsure - 1;
  }

  /** The last message, whether it is in the run or beyond it. @returns {Message|null} */
  get last() {
    const messages = this.messages();
    const own = messages[messages.length - 1] ?? null;
    return this.beyond !== null && this.beyond.seq > (own?.seq ?? 0) ? this.beyond : own;
  }

  /** Nothing at all is held of a log that has something. */
  get blank() {
    return this.lo === null && this.more;
  }

  /** The messages from the run's start on (to its end, if it is apart), in order of seq. Not to be changed by the caller. @returns {Message[]} */
  messages() {
    if (this.sorted === null) {
      const from = this.lo ?? 0;
      const to = this.apart ? this.hi ?? 0 : Infinity;
      this.sorted = [...this.held.values()].filter(({ seq }) => seq >= from && seq <= to).sort((a, b) => a.seq - b.seq);
    }
    return this.sorted;
  }

  /** One entry as it was pushed or answered. @param {Entry} entry  @param {'live'|'dup'} how */
  take(entry, how) {
    if (this.apart && entry.seq > (this.hi ?? 0)) {
      this.head = Math.max(this.head, entry.seq);
      // A dup is one that is known, not the last one; its own entry came, or comes yet.
      if (how === 'live' || this.beyond !== null) this.#past(entry);
      return;
    }
    if (how === 'live') {
      if (this.hi !== null && entry.seq > this.hi + 1) this.#drop();
      if (this.hi === null) this.lo = entry.seq;
      this.hi = Math.max(this.hi ?? 0, entry.seq);
      this.head = Math.max(this.head, entry.seq);
    }
    this.#apply(entry);
  }

  /**
   * One page of history, given that it was asked for as "before the run" or as the newest, or, with `newer`, as "after `after`". False: it
   * does not join the run (which moved meanwhile) and nothing was taken.
   * @param {{entries: Entry[], more: boolean, head: number, floor: number}} page  @param {boolean} [newer]
   */
  page({ entries, more, head, floor }, newer = false) {
    this.head = Math.max(this.head, head);
    this.raiseFloor(floor);
    if (entries.length === 0) {
      if (!newer) this.ended = !more;
      else if (!more) this.#reached();
      return true;
    }
    const first = entries[0].seq;
    const last = entries[entries.length - 1].seq;
    if (this.lo !== null && this.hi !== null && (first > this.hi + 1 || last < this.lo - 1)) return false;
    if (!newer && (this.lo === null || first <= this.lo)) this.ended = !more;
    this.lo = Math.min(this.lo ?? first, first);
    this.hi = Math.max(this.hi ?? last, last);
    for (const entry of entries) this.#apply(entry);
    if (newer && this.unsure !== null && last >= this.unsure) this.unsure = last < this.hi ? last + 1 : null;
    if (this.unsure === null && this.hi >= this.head) this.#reached();
    return true;
  }

  /**
   * The run starts anew with this page, from anywhere in the log.
   * @param {{entries: Entry[], more: boolean, head: number, floor: number}} page  @param {boolean} [newer] as in `page`
   */
  restart(page, newer = false) {
    this.forgetRun();
    this.page(page, newer);
    this.isApart = this.hi !== null && this.hi < this.head; // what was pushed meanwhile is not in it
  }

  /** The run has come to the end of the log. */
  #reached() {
    this.isApart = false;
    this.unsure = null;
    this.beyond = null;
    this.hasEnd = false;
    this.sorted = null;
  }

  /**
   * A listed one (docs/protocol.md section 3).
   * @param {{head: number, floor: number}} item  @param {boolean} kept the run goes on
   * @param {boolean} [stays] where it does not: the run stays as it is, apart, because somebody is reading it
   */
  listed({ head, floor }, kept, stays = false) {
    if (stays && this.hi !== null) {
      this.isApart = this.hi < head;
      this.unsure = this.lo;
      this.beyond = null;
      this.hasEnd = false;
    } else if (!kept) this.drop();
    this.head = head;
    this.raiseFloor(floor);
  }

  /** Retention took what is below. @param {number} floor */
  raiseFloor(floor) {
    this.floor = Math.max(this.floor, floor);
    for (const seq of this.held.keys()) if (seq < this.floor) this.held.delete(seq);
    if (this.hi !== null && this.hi < this.floor - 1) {
      this.lo = this.hi = this.unsure = null;
      this.isApart = false;
    } else if (this.lo !== null) this.lo = Math.max(this.lo, this.floor);
    if (this.unsure !== null) this.unsure = Math.max(this.unsure, this.floor);
    this.sorted = null;
  }

  /** Forgets the oldest ones; they can be fetched again. @param {number} keep messages */
  trim(keep) {
    const messages = this.messages();
    if (messages.length <= keep || this.lo === null) return;
    this.lo = messages[messages.length - keep].seq;
    for (const seq of this.held.keys()) if (seq < this.lo) this.held.delete(seq);
    for (const ref of this.changes.keys()) if (ref < this.floor) this.changes.delete(ref);
    this.ended = false;
    if (this.unsure !== null) this.unsure = Math.max(this.unsure, this.lo);
    this.sorted = null;
  }

  /** Another log stands here, or what is held has a hole. */
  drop() {
    this.floor = 1;
    this.head = 0;
    this.#drop();
  }

  /** Whether even the log's last message has yet to be fetched. */
  get isEndUnknown() {
    return this.apart && this.beyond === null && !this.hasEnd;
  }

  /**
   * The newest page, for its last message alone. That may be in the run, with nothing but changes beyond: then the page tells their text with it.
   * @param {{entries: Entry[], head: number}} page
   */
  end({ entries, head }) {
    this.head = Math.max(this.head, head);
    if (!this.apart) return;
    this.hasEnd = true;
    for (const entry of entries) {
      if (entry.seq > (this.hi ?? 0)) this.#past(entry);
      else this.#apply(entry);
    }
  }

  /** The run goes, the rest stays: what is wanted of it can be fetched. */
  forgetRun() {
    const end = this.hi === null || this.apart ? this.beyond : this.last;
    this.#drop();
    this.beyond = end;
  }

  #drop() {
    this.lo = this.hi = null;
    this.ended = false;
    this.isApart = false;
    this.unsure = null;
    this.beyond = null;
    this.hasEnd = false;
    this.held.clear();
    this.changes.clear();
    this.sorted = null;
  }

  /** @param {any} entry */
  #apply({ seq, ts, from, kind, body = null, ref, rev = 0, edited = null, deleted = null, cid = null }) {
    if (kind === 'message') {
      const message = this.held.get(seq) ?? { seq, ts, from, cid, rev: -1, body: null, edited: null, deleted: null };
      message.cid ??= cid;
      this.held.set(seq, message);
      this.sorted = null;
      this.#stand(message, { rev, body, edited, deleted });
      const change = this.changes.get(seq);
      this.changes.delete(seq);
      if (change) this.#stand(message, change);
    } else if ((kind === 'edit' || kind === 'delete') && typeof ref === 'number') {
      const isEdit = kind === 'edit';
      if (isEdit && body === null) return;  // deleted since, which its own entry tells; or past retention, where what is held is all there is
      const state = { rev: seq, body: isEdit ? body : null, edited: isEdit ? ts : null, deleted: isEdit ? null : ts };
      if (this.beyond?.seq === ref) this.#stand(this.beyond, state);
      const message = this.held.get(ref);
      if (message) this.#stand(message, state);
      else if (seq > (this.changes.get(ref)?.rev ?? -1)) this.changes.set(ref, state);
    }
  }

  /** Beyond the run: the last message is known, and changes of those that are held or will be. @param {Entry} entry */
  #past({ seq, ts, from, kind, body = null, cid = null, ref, rev = 0, edited = null, deleted = null }) {
    if (kind !== 'message') this.#apply({ seq, ts, from, kind, body, ref });
    else if (seq > (this.beyond?.seq ?? 0)) this.beyond = { seq, ts, from, cid, rev, body, edited, deleted };
  }

  /** The highest rev wins. @param {Message} message  @param {State} state */
  #stand(message, state) {
    if (state.rev > message.rev) Object.assign(message, state);
  }
}
