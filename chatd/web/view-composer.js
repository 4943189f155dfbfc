/**
 * Where messages are written and edited. It counts bytes as the server does and never cuts anything off.
 */

import { el, icon, iconButton, say, set } from './dom.js';
import { bodyBytes, cleanBody } from './wire.js';

/** With fewer bytes left than that, the counter shows. */
const COUNTER_BYTES = 256;
const HEIGHT_MAX_PX = 200;

/** @param {number} count */
const bytes = (count) => (count === 1 ? '1 byte' : `${count} bytes`);

export class ComposerView {
  /**
   * @param {{bytesMax(): number, onSend(body: string): boolean, onEdit(seq: number, body: string): boolean, onTyping(): void,
   *   onDraft(text: string): void, onEditLast(): void}} parts  `onSend`, `onEdit` tell whether it was taken
   */
  constructor(parts) {
    this.parts = parts;
    /** @type {{seq: number, body: string}|null} */
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

  /** Another conversation. @param {string} label  @param {string} draft */
  open(label, draft) {
    this.editing = null;
    this.draft = draft;
    set(this.text, 'placeholder', label);
    set(this.text, 'aria-label', label);
    this.#put(draft);
  }

  /** @param {number} seq  @param {string} body */
  edit(seq, body) {
    if (this.editing === null) this.draft = this.text.value;
    this.editing = { seq, body };
    this.#put(body);
    this.focus();
    this.text.setSelectionRange(body.length, body.length);
  }

  cancelEdit() {
    if (this.editing === null) return;
    this.editing = null;
    this.#put(this.draft);
    this.focus();
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
    this.parts.onDraft(this.draft);
    if (this.draft.trim() !== '') this.parts.onTyping();
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
    if (body.trim() === '' || bodyBytes(body) > this.parts.bytesMax()) return;
    if (this.editing !== null) {
      const { seq, body: old } = this.editing;
      if (body !== old && !this.parts.onEdit(seq, body)) return;
      this.cancelEdit();
      return;
    }
    if (!this.parts.onSend(body)) return;
    this.draft = '';
    this.parts.onDraft('');
    this.#put('');
    this.focus();
  }
}
