/**
 * What this device holds of one conversation's log: an unbroken run of seqs, and the messages in it as they stand.
 *
 *      floor ... (not held, `more`) ... lo ═══════ run ═══════ hi = the place of places.js
 *                      ◄─ history pages ─┘                └─ entries, one by one ─►
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

  /** Nothing at all is held of a log that has something. */
  get blank() {
    return this.lo === null && this.more;
  }

  /** The messages from the run's start on, in order of seq. Not to be changed by the caller. @returns {Message[]} */
  messages() {
    if (this.sorted === null) {
      const from = this.lo ?? 0;
      this.sorted = [...this.held.values()].filter((message) => message.seq >= from).sort((a, b) => a.seq - b.seq);
    }
    return this.sorted;
  }

  /** One entry as it was pushed or answered. @param {Entry} entry  @param {'live'|'dup'} how */
  take(entry, how) {
    if (how === 'live') {
      if (this.hi !== null && entry.seq > this.hi + 1) this.#drop();
      if (this.hi === null) this.lo = entry.seq;
      this.hi = Math.max(this.hi ?? 0, entry.seq);
      this.head = Math.max(this.head, entry.seq);
    }
    this.#apply(entry);
  }

  /**
   * One page of history, given that it was asked for as "before the run" or as the newest. False: it does not join the run
   * (which moved meanwhile) and nothing was taken.
   * @param {{entries: Entry[], more: boolean, head: number, floor: number}} page
   */
  page({ entries, more, head, floor }) {
    this.head = Math.max(this.head, head);
    this.raiseFloor(floor);
    if (entries.length === 0) {
      this.ended = !more;
      return true;
    }
    const first = entries[0].seq;
    const last = entries[entries.length - 1].seq;
    if (this.lo !== null && this.hi !== null && (first > this.hi + 1 || last < this.lo - 1)) return false;
    if (this.lo === null || first <= this.lo) this.ended = !more;
    this.lo = Math.min(this.lo ?? first, first);
    this.hi = Math.max(this.hi ?? last, last);
    for (const entry of entries) this.#apply(entry);
    return true;
  }

  /** A listed one (docs/protocol.md section 3). @param {{head: number, floor: number}} item  @param {boolean} kept the run goes on */
  listed({ head, floor }, kept) {
    if (!kept) this.drop();
    this.head = head;
    this.raiseFloor(floor);
  }

  /** Retention took what is below. @param {number} floor */
  raiseFloor(floor) {
    this.floor = Math.max(this.floor, floor);
    for (const seq of this.held.keys()) if (seq < this.floor) this.held.delete(seq);
    if (this.hi !== null && this.hi < this.floor - 1) this.lo = this.hi = null;
    else if (this.lo !== null) this.lo = Math.max(this.lo, this.floor);
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
    this.sorted = null;
  }

  /** Another log stands here, or what is held has a hole. */
  drop() {
    this.floor = 1;
    this.head = 0;
    this.#drop();
  }

  #drop() {
    this.lo = this.hi = null;
    this.ended = false;
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
      const message = this.held.get(ref);
      if (message) this.#stand(message, state);
      else if (seq > (this.changes.get(ref)?.rev ?? -1)) this.changes.set(ref, state);
    }
  }

  /** The highest rev wins. @param {Message} message  @param {State} state */
  #stand(message, state) {
    if (state.rev > message.rev) Object.assign(message, state);
  }
}
