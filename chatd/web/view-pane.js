/**
 * One conversation: who it is with, the messages, the composer.
 *
 * Where the eye is, it stays: whatever is added, changed or taken away above or below, the first line in sight keeps its place; at the
 * end the pane follows what comes. A conversation opens at its unread mark, else at its end. `isAtEnd` counts as read only when `isSettled`.
 */

import { avatar, countOf, el, face, icon, iconButton, keyed, say, set } from './dom.js';
import { rows } from './rows.js';
import { lastSeen } from './times.js';
import { makeRow, updateRow } from './view-message.js';

const END_PX = 48;
/** Older messages are fetched when the top is this near. */
const REACH_PX = 700;
const MARK_FROM_TOP_PX = 72;
/** Not more than this is fetched to find the unread mark. */
const OPENING_MESSAGES_MAX = 500;

/** @typedef {import('./model.js').Model} Model */
/** @typedef {import('./view-composer.js').ComposerView} ComposerView */

export class PaneView {
  /**
   * @param {{model: Model, composer: ComposerView, acts: import('./view-message.js').Acts, canDiscard: (item: any) => boolean,
   *   onOlder(peer: string): void, onMoved(): void, onBack(): void}} parts  `onMoved`: scrolled
   */
  constructor(parts) {
    this.parts = parts;
    this.model = parts.model;
    /** @type {string|null} */
    this.peer = null;
    /** @type {number|null} the unread mark stands after this seq */
    this.mark = null;
    this.isAtEnd = true;
    this.isSettled = false;
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
    this.typing = el('div', { class: 'typing', 'aria-hidden': 'true' }, el('span'), el('span'), el('span'));
    this.scroller = el('div', { class: 'scroller', role: 'region', tabindex: 0, on: { scroll: () => this.#scrolled() } },
      this.top, this.log, this.typing);
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
    this.mark = null;
    this.isAtEnd = true;
    this.isSettled = false;
    keyed(this.log, [], String, () => null, () => {});
  }

  toEnd() {
    this.isAtEnd = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#showDown();
    this.parts.onMoved();
  }

  /** The mark has served. */
  unmark() {
    this.mark = null;
  }

  /** @param {boolean} isSeen whether the user looks at the page */
  render(isSeen) {
    const it = this.peer === null ? undefined : this.model.conversations.get(this.peer);
    if (!it) return;
    this.#renderHead(it);
    if (it.unread > 0 && !(isSeen && this.isSettled && this.isAtEnd)) this.mark = it.read;
    const { model, parts } = this;
    const now = model.now();
    const list = rows(it, model.pending(it.peer),
      { user: model.user, now, editMs: model.limits.edit_ms, mark: this.mark, canDiscard: parts.canDiscard });
    const anchor = this.isAtEnd ? null : this.#anchor();
    this.#renderTop(it);
    keyed(this.log, list, ({ key }) => key, (row) => makeRow(row, parts.acts), (node, row) => updateRow(node, row, { peer: it.peer, now }));
    this.#stopAt();
    this.typing.hidden = !model.isTyping(it.peer);
    this.#place(anchor);
    if (!this.isSettled) this.#settle(it);
    this.#showDown(it.unread);
    this.#fill(it);
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

  /** @param {{node: any, from: number}[]|null} anchor null: the end */
  #place(anchor) {
    if (anchor === null) {
      this.scroller.scrollTop = this.scroller.scrollHeight;
      return;
    }
    const kept = anchor.find(({ node }) => node.isConnected && !node.classList.contains('day')) ?? anchor.find(({ node }) => node.isConnected);
    if (!kept) return;
    const top = kept.node.offsetTop - kept.from;
    if (Math.abs(top - this.scroller.scrollTop) >= 1) this.scroller.scrollTop = top;
  }

  /** Opening: to the mark if there is one, once its place is known. @param {import('./model.js').Conversation} it */
  #settle(it) {
    const { log } = it;
    if (log.blank || !this.model.known) return;
    if (this.mark !== null && log.more && log.lo !== null && log.lo > this.mark + 1 && log.messages().length < OPENING_MESSAGES_MAX) {
      this.parts.onOlder(it.peer);
      return;
    }
    this.isSettled = true;
    const mark = this.log.querySelector('.new');
    if (mark) this.scroller.scrollTop = mark.offsetTop - MARK_FROM_TOP_PX;
    this.#look();
    // After this turn, because it may be called within a rendering.
    queueMicrotask(() => this.parts.onMoved());
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < END_PX;
  }

  #scrolled() {
    if (!this.isSettled) return;
    this.#look();
    const it = this.peer === null ? undefined : this.model.conversations.get(this.peer);
    if (it) this.#fill(it);
    this.#showDown(it?.unread);
    this.parts.onMoved();
  }

  /** Older ones, when the top is near. @param {import('./model.js').Conversation} it */
  #fill({ peer, log }) {
    if (log.more && this.scroller.scrollTop < REACH_PX) this.parts.onOlder(peer);
  }

  #resized() {
    if (this.isAtEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.#look();
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
