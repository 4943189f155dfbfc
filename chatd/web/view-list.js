/**
 * The side with the conversations: who I am, the box that searches and starts chats, the list by last entry.
 *
 * Only the rows in reach are made: a user may have thousands of conversations.
 */

import { avatar, countOf, el, face, icon, iconButton, keyed, say, set } from './dom.js';
import { preview } from './rows.js';
import { fullTime, shortTime } from './times.js';
import { cleanUser } from './wire.js';

const ROWS_STEP = 60;
const REACH_PX = 400;

/** @typedef {import('./model.js').Model} Model */
/** @typedef {import('./model.js').Conversation} Conversation */

export class ListView {
  /**
   * `onReach`: the rows that are shown now.
   * @param {{model: Model, onOpen(peer: string): void, onLeave(): void, onReach(peers: string[]): void}} parts
   */
  constructor({ model, onOpen, onLeave, onReach }) {
    this.model = model;
    this.onOpen = onOpen;
    this.onReach = onReach;
    this.rowsMax = ROWS_STEP;
    this.myFace = avatar('?');
    this.myName = el('bdi', { class: 'name' });
    this.myState = el('span', { class: 'state' });
    this.search = el('input', {
      type: 'search', id: 'search', class: 'search', placeholder: 'Search or start a chat', autocomplete: 'off',
      'aria-label': 'Search conversations, or type a name to start a chat', spellcheck: 'false', autocapitalize: 'none', maxlength: 128,
      on: { input: () => this.render(), keydown: (event) => this.#searchKey(event) },
    });
    this.startName = el('bdi');
    this.start = el('button', { type: 'button', class: 'start', on: { click: () => this.#startChat() } },
      icon('chat'), el('span', {}, 'Start a chat with ', this.startName));
    this.list = el('ol', { class: 'conversations', 'aria-label': 'Conversations', on: { keydown: (event) => this.#listKey(event) } });
    this.empty = el('p', { class: 'empty' });
    this.scroller = el('div', { class: 'list-scroller', on: { scroll: () => this.#scrolled() } }, this.start, this.list, this.empty);
    this.node = el('nav', { class: 'side', 'aria-label': 'Chats' },
      el('header', { class: 'side-head' },
        el('span', { class: 'portrait' }, this.myFace),
        el('span', { class: 'who' }, this.myName, this.myState),
        iconButton('leave', 'Use another name', onLeave)),
      el('div', { class: 'search-box' }, icon('search'), this.search),
      this.scroller);
  }

  focusSearch() {
    this.search.focus();
    this.search.select();
  }

  clear() {
    this.search.value = '';
    this.rowsMax = ROWS_STEP;
  }

  /** @param {{away?: boolean}} [facts] */
  render({ away = this.away } = {}) {
    this.away = away;
    const { model } = this;
    face(this.myFace, model.user || '?', false);
    say(this.myName, model.user);
    say(this.myState, !model.isLive ? 'not connected' : away ? 'away' : 'online');
    const typed = this.search.value;
    const sought = typed.trim().normalize('NFC').toLocaleLowerCase();
    const found = model.sorted().filter(({ peer }) => sought === '' || peer.toLocaleLowerCase().includes(sought));
    const user = cleanUser(typed);
    const isNew = user !== null && !model.conversations.has(user);
    this.start.hidden = !isNew;
    say(this.startName, isNew ? (user === model.user ? `${user} (notes to yourself)` : user) : '');
    const shown = found.slice(0, this.rowsMax);
    keyed(this.list, shown, ({ peer }) => peer, (it) => this.#makeRow(it), (row, it) => this.#update(row, it));
    this.empty.hidden = found.length > 0 || isNew;
    say(this.empty, !model.known ? 'Getting your conversations…' : sought !== '' ? 'Nobody by that name.'
      : 'No conversations yet. Type a name above to start one; your own name makes notes to yourself.');
    this.onReach(shown.map(({ peer }) => peer));
  }

  /** @param {Conversation} it */
  #makeRow({ peer }) {
    const parts = {
      face: avatar(peer), dot: el('span', { class: 'dot' }), name: el('bdi', { class: 'name' }), time: el('time', { class: 'time' }),
      tick: el('span', { class: 'tick' }), text: el('span', { class: 'preview-text', dir: 'auto' }), badge: el('span', { class: 'badge' }),
      spoken: el('span', { class: 'vh' }),
    };
    const button = el('button', { type: 'button', class: 'conversation', on: { click: () => this.#open(peer) } },
      el('span', { class: 'portrait' }, parts.face, parts.dot),
      el('span', { class: 'lines' },
        el('span', { class: 'line' }, parts.name, parts.time),
        el('span', { class: 'line' }, el('span', { class: 'preview' }, parts.tick, parts.text), parts.badge, parts.spoken)));
    return Object.assign(el('li', {}, button), { parts, button });
  }

  /** @param {any} row  @param {Conversation} it */
  #update({ parts, button }, it) {
    const { model } = this;
    const isSelf = it.peer === model.user;
    const now = model.now();
    const state = isSelf ? null : model.presenceOf(it.peer)?.state ?? null;
    const { text, kind, own, tick, ts } = preview(it, model.pending(it.peer), model.user);
    const isTyping = model.isTyping(it.peer);
    face(parts.face, it.peer, isSelf);
    set(button, 'aria-current', model.shown === it.peer ? 'true' : null);
    set(parts.dot, 'class', `dot ${state ?? 'unknown'}`);
    say(parts.name, isSelf ? `${it.peer} (you)` : it.peer);
    say(parts.time, ts === null ? '' : shortTime(ts, now));
    set(parts.time, 'title', ts === null ? null : fullTime(ts));
    this.#tick(parts.tick, isTyping ? 'none' : tick);
    set(parts.text, 'class', `preview-text ${isTyping ? 'typing-text' : `is-${kind}`}`);
    say(parts.text, isTyping ? 'typing…' : this.#words(kind, own, text));
    parts.badge.hidden = it.unread === 0;
    say(parts.badge, countOf(it.unread));
    set(parts.badge, 'aria-hidden', 'true');
    set(button, 'class', `conversation${it.unread > 0 ? ' has-unread' : ''}`);
    say(parts.spoken, `${state !== null ? `, ${state}` : ''}${it.unread > 0 ? `, ${it.unread} unread` : ''}`);
  }

  /** @param {'message'|'deleted'|'none'} kind  @param {boolean} own  @param {string} text */
  #words(kind, own, text) {
    if (kind === 'deleted') return own ? 'You deleted a message' : 'Message deleted';
    return kind === 'none' ? '' : text.slice(0, 200).replace(/\s+/g, ' ');
  }

  /** @param {any} node  @param {string} tick */
  #tick(node, tick) {
    if (node.shows === tick) return;
    node.shows = tick;
    set(node, 'class', `tick ${tick}`);
    node.replaceChildren(...(tick === 'none' ? [] : [icon(tick === 'delivered' || tick === 'read' ? 'both' : tick)]));
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    if (scrollHeight - scrollTop - clientHeight > REACH_PX || this.list.children.length < this.rowsMax) return;
    this.rowsMax += ROWS_STEP;
    this.render();
  }

  #startChat() {
    const user = cleanUser(this.search.value);
    if (user !== null) this.#open(user);
  }

  /** @param {string} peer */
  #open(peer) {
    this.search.value = '';
    this.onOpen(peer);
    this.render();
  }

  /** Enter takes exactly who was typed; the arrow goes to who was found. @param {KeyboardEvent} event */
  #searchKey(event) {
    if (event.isComposing) return;
    if (event.key === 'Enter') this.#startChat();
    else if (event.key === 'Escape') {
      this.search.value = '';
      this.render();
    } else if (event.key === 'ArrowDown') this.list.querySelector('button')?.focus();
    else return;
    event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  #listKey(event) {
    const buttons = [...this.list.querySelectorAll('button')];
    const at = buttons.indexOf(/** @type {any} */ (document.activeElement));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    if (to < 0) this.focusSearch();
    else buttons[Math.min(to, buttons.length - 1)].focus();
  }
}
