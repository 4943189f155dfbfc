/**
 * One conversation: who it is with, the messages, the composer.
 *
 * Where the eye is, it stays: whatever is added, changed or taken away above or below, the first line in sight keeps its place. At the
 * end the pane follows what comes, but never past the first message that nobody has seen, nor past one that was seen for a blink only.
 * A conversation opens at the line above its new messages, else at its end; also when it is long open and all that was held of it had to
 * go. `seenTo` tells how far it was seen.
 */

import { avatar, countOf, el, face, icon, iconButton, keyed, say, set } from './dom.js';
import { Divider, lastInView } from './reading.js';
import { rows } from './rows.js';
import { lastSeen } from './times.js';
import { makeRow, updateRow } from './view-message.js';

const END_PX = 48;
/** Further messages are fetched when the top or the bottom is this near. */
const REACH_PX = 700;
const LINE_FROM_TOP_PX = 72;
/** A line further from what is held than this many entries is gone to at once, without what lies between. */
const WAY_ENTRIES_MAX = 200;
/** What comes within this time stays in view as a whole, or the rest of it waits below: many messages come in several drawings. */
const BURST_MS = 1000;
/** Places are rounded. */
const ROUNDING_PX = 2;

/** @typedef {import('./model.js').Model} Model */
/** @typedef {import('./view-composer.js').ComposerView} ComposerView */

export class PaneView {
  /**
   * @param {{model: Model, composer: ComposerView, acts: import('./view-message.js').Acts, canDiscard: (item: any) => boolean,
   *   history: import('./history.js').History, onMoved(): void, onBack(): void}} parts  `onMoved`: scrolled
   */
  constructor(parts) {
    this.parts = parts;
    this.model = parts.model;
    /** @type {string|null} */
    this.peer = null;
    this.divider = new Divider();
    this.isAtEnd = true;
    this.isSettled = false;
    /** On the way to an end that is not held. */
    this.isLeaping = false;
    /** The read cursor when the burst of now began. */
    this.burst = { at: -Infinity, read: 0 };
    this.face = avatar('?');
    this.dot = el('span', { class: 'dot' });
    this.name = el('bdi', { class: 'name' });
    this.state = el('span', { class: 'state' });
    this.head = el('header', { class: 'pane-head' }, iconButton('back', 'Back to the conversations', parts.onBack, 'plain back'),
      el('span', { class: 'portrait' }, this.face, this.dot), el('span', { class: 'who' }, el('h2', {}, this.name), this.state));
    this.top = el('p', { class: 'top' });
    this.log = el('ol', { class: 'log', on: {
      keydown: (event) => this.#key(event), focusin: (event) => this.#stopAt(event.target.closest('.message') ?? undefined) } });
    /** @type {any} the message that Tab reaches */
    this.stop = null;
    this.bottom = el('p', { class: 'top loading', text: 'Getting newer messages…', hidden: true });
    this.typing = el('div', { class: 'typing', 'aria-hidden': 'true' }, el('span'), el('span'), el('span'));
    this.scroller = el('div', { class: 'scroller', role: 'region', tabindex: 0, on: { scroll: () => this.#scrolled() } },
      this.top, this.log, this.bottom, this.typing);
    this.below = el('span', { class: 'badge' });
    this.down = iconButton('down', 'Go to the latest message', () => this.toEnd(), 'down');
    this.down.append(this.below);
    this.node = el('section', { class: 'pane', 'aria-label': 'Conversation' }, this.head,
      el('div', { class: 'stage' }, this.scroller, this.down), parts.composer.node);
    this.placeholder = el('section', { class: 'pane nobody' }, icon('chat'),
      el('p', { text: 'Choose a conversation, or type a name to start one.' }));
    new ResizeObserver(() => this.#resized()).observe(this.scroller);
  }

  /** Another conversation. @param {string|null} peer */
  open(peer) {
    this.peer = peer;
    this.#anew();
    keyed(this.log, [], String, () => null, () => {});
  }

  #anew() {
    this.divider.remove();
    this.isAtEnd = true;
    this.isSettled = false;
    this.isLeaping = false;
    this.burst = { at: -Infinity, read: 0 };
  }

  /** @returns {import('./model.js').Conversation|undefined} */
  get #it() {
    return this.peer === null ? undefined : this.model.conversations.get(this.peer);
  }

  /** The user wants to be at the end: nothing holds them at what they have not seen. */
  toEnd() {
    const log = this.#it?.log;
    this.isLeaping = log?.apart === true && this.model.isLive;
    this.burst.at = -Infinity;
    if (this.isLeaping) this.parts.history.latest(this.peer ?? '');
    this.#goToEnd();
    this.#showDown();
    this.parts.onMoved();
  }

  /** The line above the new messages has served. */
  unmark() {
    this.divider.remove();
  }

  /** How far the log has been in view here, or null while that is not known. */
  seenTo() {
    const it = this.#it;
    const { scrollTop, clientHeight } = this.scroller;
    if (!it || !this.isSettled || this.isLeaping || clientHeight === 0) return null;
    const seq = lastInView(this.log.children, scrollTop + clientHeight + ROUNDING_PX, endOf, seqOf);
    const { log } = it;
    const last = log.messages()[log.messages().length - 1];
    // With the last message all that follows it was seen, too: edits and deletions are shown where their messages are.
    return !log.apart && seq === (last?.seq ?? null) ? log.hi : seq;
  }

  /** @param {boolean} isPresent whether a user looks at the page */
  render(isPresent) {
    const it = this.#it;
    if (!it) return;
    if (this.isSettled && it.log.blank) this.#anew();
    const isLanding = this.#land(it);
    this.#renderHead(it);
    this.#renderTop(it);
    const isWatched = isPresent && this.isSettled && this.isAtEnd;
    this.divider.move(it, isWatched);
    this.#renderLog(it);
    if (isWatched && !this.isAtEnd) { // more came at once than there is room for
      this.divider.move(it, false);
      this.#renderLog(it);
    }
    if (!this.isSettled) this.#settle(it);
    if (isLanding) this.#goToEnd();
    this.#showDown(it.unread);
    this.#fill(it);
  }

  /** @param {import('./model.js').Conversation} it */
  #renderLog(it) {
    const { model, parts } = this;
    const now = model.now();
    const list = rows(it, model.pending(it.peer),
      { user: model.user, now, editMs: model.limits.edit_ms, mark: this.divider.after, canDiscard: parts.canDiscard });
    const anchor = this.isAtEnd ? null : this.#anchor();
    keyed(this.log, list, ({ key }) => key, (row) => makeRow(row, parts.acts), (node, row) => updateRow(node, row, { peer: it.peer, now }));
    this.#stopAt();
    this.bottom.hidden = !it.log.apart;
    this.typing.hidden = !model.isTyping(it.peer);
    this.#place(it, anchor);
  }

  /** A leap ends where the end is held, and is given up with the line. @param {import('./model.js').Conversation} it  @returns {boolean} whether it ends there now */
  #land({ log }) {
    const isLanding = this.isLeaping && this.model.isLive && !log.apart;
    if (isLanding || !this.model.isLive) this.isLeaping = false;
    return isLanding;
  }

  #goToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#look();
  }

  /** @param {import('./model.js').Conversation} it */
  #renderHead(it) {
    const { model } = this;
    const isSelf = it.peer === model.user;
    const presence = isSelf ? null : model.presenceOf(it.peer);
    face(this.face, it.peer, isSelf);
    set(this.dot, 'class', `dot ${presence?.state ?? 'unknown'}`);
    say(this.name, isSelf ? `${it.peer} (you)` : it.peer);
    const isTyping = model.isTyping(it.peer);
    const states = { online: 'online', away: 'away' };
    const words = presence === null ? '' : states[presence.state] ?? lastSeen(presence.seen, model.now());
    say(this.state, isSelf ? 'Notes to yourself' : isTyping ? 'typing…' : words);
    set(this.state, 'class', `state${isTyping ? ' typing-text' : ''}`);
    set(this.scroller, 'aria-label', `Messages with ${it.peer}`);
  }

  /** @param {import('./model.js').Conversation} it */
  #renderTop({ log, peer, c }) {
    const isBlank = c === null && this.model.pending(peer).length === 0 && log.messages().length === 0;
    const beginning = log.floor > 1 ? 'Older messages have passed the time they are kept.' : 'This is the beginning.';
    say(this.top, log.more ? 'Getting older messages…' : isBlank ? 'Nothing said yet. Say hello!' : beginning);
    set(this.top, 'class', `top${log.more ? ' loading' : ''}`);
  }

  // --- where the eye is ---------------------------------------------------------------------------------------------

  /** The first line in sight, and how far from the top of the view it is. */
  #anchor() {
    const nodes = this.log.children;
    const { scrollTop } = this.scroller;
    let low = 0;
    let high = nodes.length;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (nodes[mid].offsetTop + nodes[mid].offsetHeight <= scrollTop) low = mid + 1;
      else high = mid;
    }
    // A few of them, because the first may be what goes (a day, the mark, a discarded one).
    return [...nodes].slice(low, low + 4).map((node) => ({ node, from: node.offsetTop - scrollTop }));
  }

  /** @param {import('./model.js').Conversation} it  @param {{node: any, from: number}[]|null} anchor null: the end */
  #place(it, anchor) {
    if (anchor === null) {
      this.#follow(it);
      return;
    }
    const kept = anchor.find(({ node }) => node.isConnected && !node.classList.contains('day')) ?? anchor.find(({ node }) => node.isConnected);
    if (kept) {
      const top = kept.node.offsetTop - kept.from;
      if (Math.abs(top - this.scroller.scrollTop) >= 1) this.scroller.scrollTop = top;
    }
    this.#look();
  }

  /** To the end, or as near to it as the first new message allows. @param {import('./model.js').Conversation} it */
  #follow({ read }) {
    const { scroller } = this;
    const now = performance.now();
    if (now - this.burst.at > BURST_MS) this.burst = { at: now, read };
    const first = this.isSettled ? this.#firstAfter(Math.min(read, this.burst.read)) : null;
    const end = scroller.scrollHeight - scroller.clientHeight;
    scroller.scrollTop = first === null ? end : Math.max(scroller.scrollTop, Math.min(end, first.offsetTop - LINE_FROM_TOP_PX));
    this.#look();
  }

  /** The peer's first message after that seq. @param {number} read  @returns {any} */
  #firstAfter(read) {
    let first = null;
    for (let node = /** @type {any} */ (this.log.lastElementChild); node !== null; node = node.previousElementSibling) {
      const { row } = node;
      if (row && row.seq !== null && row.seq <= read) break;
      if (row && row.seq !== null && !row.own) first = node;
    }
    return first;
  }

  /** Opening: to the line if there is one, once its place is known. @param {import('./model.js').Conversation} it */
  #settle({ log, peer }) {
    if (log.blank || !this.model.known) return;
    const { after } = this.divider;
    if (after !== null && log.more && log.lo !== null && log.lo > after + 1) {
      if (log.lo - after > WAY_ENTRIES_MAX) this.parts.history.from(peer, after);
      else this.parts.history.older(peer);
      return;
    }
    this.isSettled = true;
    const line = this.log.querySelector('.new');
    if (line) this.scroller.scrollTop = line.offsetTop - LINE_FROM_TOP_PX;
    else if (log.apart) this.scroller.scrollTop = 0;
    this.#look();
    // After this turn, because it may be called within a rendering.
    queueMicrotask(() => this.parts.onMoved());
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < END_PX && this.#it?.log.apart !== true;
  }

  #scrolled() {
    if (!this.isSettled) return;
    this.#look();
    const it = this.#it;
    if (it) this.#fill(it);
    this.#showDown(it?.unread);
    this.parts.onMoved();
  }

  /** What is near, above and below. @param {import('./model.js').Conversation} it */
  #fill({ peer, log }) {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    const { history } = this.parts;
    if (this.isSettled && (log.unsure !== null || (log.apart && scrollHeight - scrollTop - clientHeight < REACH_PX))) history.newer(peer);
    else if (log.more && scrollTop < REACH_PX) history.older(peer);
  }

  #resized() {
    const it = this.#it;
    if (this.isAtEnd && it) this.#follow(it);
    else this.#look();
    this.parts.onMoved();
  }

  /** @param {number} [unread] */
  #showDown(unread = 0) {
    this.down.hidden = this.isAtEnd || !this.isSettled;
    this.below.hidden = unread === 0;
    say(this.below, countOf(unread));
  }

  // --- keys ---------------------------------------------------------------------------------------------------------

  /** Up and down walk through the messages; Enter edits, Delete deletes. @param {KeyboardEvent} event */
  #key(event) {
    const target = /** @type {any} */ (event.target);
    const node = target.closest('.message');
    if (!node) return;
    const messages = [...this.log.querySelectorAll('.message')];
    const at = messages.indexOf(node);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: messages.length - 1 }[event.key];
    if (to !== undefined) messages[to]?.focus();
    else if (target !== node) return;
    else if (event.key === 'Enter' && node.row.canEdit) this.parts.acts.onEdit(node.row);
    else if (event.key === 'Delete' && node.row.canDelete) this.parts.acts.onDelete(node.row);
    else if (event.key === 'Escape') this.parts.composer.focus();
    else return;
    event.preventDefault();
  }

  /** One message is in the Tab order: where the focus was, else the last one. @param {any} [node] */
  #stopAt(node = this.stop?.isConnected ? this.stop : null) {
    const stop = node ?? this.log.querySelector('.message:nth-last-child(1 of .message)');
    if (this.stop && this.stop !== stop) set(this.stop, 'tabindex', -1);
    if (stop) set(stop, 'tabindex', 0);
    this.stop = stop;
  }
}

/** @param {any} node a line of the log */
const endOf = (node) => node.offsetTop + node.offsetHeight;
/** @param {any} node @returns {number|null} */
const seqOf = (node) => node.row?.seq ?? null;
