/**
 * The first screen: a name in development mode, a token otherwise.
 */

import { el, icon, say, set } from './dom.js';
import { cleanName } from './wire.js';

/** @typedef {'name'|'token'} Mode */

export class SignInView {
  /** @param {{onName(name: string): void, onToken(token: string): void}} acts */
  constructor({ onName, onToken }) {
    this.acts = { onName, onToken };
    /** @type {Mode} */
    this.mode = 'name';
    this.hint = el('p', { class: 'hint' });
    this.label = el('label', { for: 'who' });
    this.input = el('input', { id: 'who', spellcheck: 'false', autocapitalize: 'none', 'aria-describedby': 'who-fault' });
    this.fault = el('p', { id: 'who-fault', class: 'fault-text', role: 'alert' });
    this.button = el('button', { type: 'submit', class: 'primary' });
    this.node = el('main', { class: 'signin' },
      el('div', { class: 'card' },
        el('img', { class: 'logo', src: '/icon.svg', alt: '', width: 56, height: 56 }),
        el('h1', { text: 'chatd' }),
        this.hint,
        el('form', { on: { submit: (event) => this.#submit(event) } }, this.label, this.input, this.fault, this.button)));
  }

  /** @param {{mode: Mode, fault?: string, isBusy?: boolean, name?: string}} facts */
  show({ mode, fault = '', isBusy = false, name = '' }) {
    const isName = mode === 'name';
    if (mode !== this.mode || this.input.type === 'text') this.input.value = this.input.value || name;
    this.mode = mode;
    say(this.hint, isName ? 'Pick a name and chat. Open a second tab with another name to talk to yourself.'
      : 'Paste the access token of your user. For development, `chatd token NAME` makes one.');
    say(this.label, isName ? 'Your name' : 'Access token');
    set(this.input, 'type', isName ? 'text' : 'password');
    set(this.input, 'autocomplete', isName ? 'username' : 'off');
    set(this.input, 'maxlength', isName ? 128 : 8192);
    set(this.input, 'aria-invalid', fault !== '' ? 'true' : null);
    say(this.fault, fault);
    this.button.disabled = isBusy;
    this.button.replaceChildren(isBusy ? 'One moment…' : 'Start chatting', icon('send'));
  }

  focus() {
    this.input.focus();
    this.input.select();
  }

  /** The words of the last user go. */
  clear() {
    this.input.value = '';
  }

  /** @param {Event} event */
  #submit(event) {
    event.preventDefault();
    const text = this.input.value.trim();
    if (this.mode === 'token') {
      if (text === '') this.show({ mode: 'token', fault: 'Paste a token first.' });
      else this.acts.onToken(text);
      return;
    }
    const name = cleanName(text);
    if (name === null) this.show({ mode: 'name', fault: text === '' ? 'Type a name first.' : 'A name has 1 to 64 printable characters.' });
    else this.acts.onName(name);
  }
}
