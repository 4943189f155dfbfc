/**
 * Where messages are written and edited. It counts bytes as the server does and never cuts anything off.
 *
 * What is in it belongs to the conversation that it was opened for, and an edit to its message: the acts name them.
 */

import { el, icon, iconButton, say, set } from './dom.js';
import { bodyBytes, cleanBody } from './wire.js';

/** With fewer bytes left than that, the counter shows. */
const COUNTER_BYTES = 256;
const HEIGHT_MAX_PX = 200;

/** @typedef {import('./asking.js').Target} Target */

/** @param {number} count */
const bytes = (count) => (count === 1 ? '1 byte' : `${count} bytes`);

export class ComposerView {
  /**
   * @param {{bytesMax(): number, onSend(peer: string, body: string): boolean, onEdit(target: Target, body: string): boolean,
   *   onTyping(peer: string): void, onDraft(peer: string, text: string): void, onEditLast(): void}} parts
   * `onSend`, `onEdit` tell whether it was taken
   */
  constructor(parts) {
    this.parts = parts;
    /** @type {string|null} */
    this.peer = null;
    /** @type {{target: Target, body: string}|null} */
    this.editing = null;
    this.draft = '';
    // On a phone the Return key is the only way to a new line.
    this.isTouch = matchMedia('(pointer: coarse)').matches;
    this.text = el('textarea', {
      class: 'writing', rows: 1, dir: 'auto', 'aria-describedby': 'bytes', enterkeyhint: this.isTouch ? 'enter' : 'send',
      on: { input: () => this.#typed(), keydown: (event) => this.#key(event) },
    });
    this.counter = el('span', { id: 'bytes', class: 'counter', role: 'status' });
    this.button = iconButton('send', 'Send', () => this.#submit(), 'send');
    this.editBar = el('div', { class: 'edit-bar', hidden: true },
      icon('edit'), el('span', { text: 'Editing a message' }), iconButton('close', 'Cancel the edit', () => this.cancelEdit()));
    this.node = el('div', { class: 'composer' }, this.editBar, el('div', { class: 'writing-line' }, this.text, this.counter, this.button));
  }

  /** Another conversation, or none. @param {string|null} peer  @param {string} [label]  @param {string} [draft] */
  open(peer, label = '', draft = '') {
    this.peer = peer;
    this.editing = null;
    this.draft = draft;
    set(this.text, 'placeholder', label);
    set(this.text, 'aria-label', label);
    this.#put(draft);
  }

  /**
   * Begins an edit. One of another message that is under way ends, and what was typed into it is kept.
   * @param {Target} target  @param {string} body as it is now  @returns {boolean} whether there are such words
   */
  edit(target, body) {
    if (this.editing !== null && isSame(this.editing.target, target)) { // or it would begin anew
      this.focus();
      return false;
    }
    const isKept = this.review(() => false);
    this.draft = this.text.value;
    this.editing = { target, body };
    this.#put(body);
    this.focus();
    this.text.setSelectionRange(body.length, body.length);
    return isKept;
  }

  cancelEdit() {
    if (this.editing === null) return;
    this.editing = null;
    this.#put(this.draft);
    this.focus();
  }

  /**
   * Ends the edit of what can no longer be changed. Words that were typed stay, below the draft: they can still be sent.
   * @param {(target: Target) => boolean} stands  @returns {boolean} whether there are such words
   */
  review(stands) {
    if (this.editing === null || stands(this.editing.target)) return false;
    const typed = this.text.value === this.editing.body ? '' : this.text.value;
    this.editing = null;
    this.draft = [this.draft, typed].filter((text) => text !== '').join('\n');
    this.#put(this.draft);
    if (typed !== '' && this.peer !== null) this.parts.onDraft(this.peer, this.draft);
    return typed !== '';
  }

  focus() {
    this.text.focus({ preventScroll: true });
  }

  /** @param {string} text */
  #put(text) {
    this.text.value = text;
    this.editBar.hidden = this.editing === null;
    set(this.button, 'aria-label', this.editing === null ? 'Send' : 'Save');
    set(this.button, 'title', this.editing === null ? 'Send' : 'Save');
    this.#measure();
  }

  #typed() {
    this.#measure();
    if (this.editing !== null) return;
    this.draft = this.text.value;
    if (this.peer === null) return;
    this.parts.onDraft(this.peer, this.draft);
    if (this.draft.trim() !== '') this.parts.onTyping(this.peer);
  }

  #measure() {
    const left = this.parts.bytesMax() - bodyBytes(cleanBody(this.text.value));
    say(this.counter, left < 0 ? `${bytes(-left)} too long` : left < COUNTER_BYTES ? `${bytes(left)} left` : '');
    set(this.counter, 'class', `counter${left < 0 ? ' over' : ''}`);
    set(this.text, 'aria-invalid', left < 0 ? 'true' : null);
    this.button.disabled = left < 0 || this.text.value.trim() === '';
    this.text.style.height = 'auto';
    this.text.style.height = `${Math.min(this.text.scrollHeight, HEIGHT_MAX_PX)}px`;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === 'Enter' && !event.shiftKey && !event.altKey && (!this.isTouch || event.ctrlKey)) this.#submit();
    else if (event.key === 'Escape' && this.editing !== null) this.cancelEdit();
    else if (event.key === 'ArrowUp' && this.text.value === '' && this.editing === null) this.parts.onEditLast();
    else return;
    event.preventDefault();
  }

  #submit() {
    const body = cleanBody(this.text.value);
    const { peer } = this;
    if (peer === null || body.trim() === '' || bodyBytes(body) > this.parts.bytesMax()) return;
    if (this.editing !== null) {
      const { target, body: old } = this.editing;
      if (body !== old && !this.parts.onEdit(target, body)) return;
      this.cancelEdit();
      return;
    }
    if (!this.parts.onSend(peer, body)) return;
    this.draft = '';
    this.parts.onDraft(peer, '');
    this.#put('');
    this.focus();
  }
}

/** @param {Target} one  @param {Target} other */
function isSame(one, other) {
  return one.peer === other.peer && one.seq === other.seq && one.cid === other.cid;
}
