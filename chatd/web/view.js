/**
 * The frame of the page: which screen, the banner about the line, short notices, the question before a deletion, and what a screen
 * reader says aloud.
 */

import { el, say, set } from './dom.js';
import { seconds } from './times.js';

const NOTICE_MS = 6000;
const NOTICES_MAX = 3;
/** A line that is back sooner than this was never away, as far as the user is concerned. */
const BANNER_AFTER_MS = 1500;

/** @typedef {import('./dial.js').Status} Status */
/**
 * `stands` tells whether that which it is about is still there to be seen; `confirmed` is called only then.
 * @typedef {{text: string, label: string, stands: () => boolean, confirmed: () => void}} Question
 */
/** @typedef {{text: string, kind: 'calm'|'busy'|'bad', action: 'again'|'reload'|null, label: string}} Banner */

/** @type {Readonly<Record<string, Banner>>} */
const STOPPED = Object.freeze({
  replaced: { text: 'This chat goes on in another window.', kind: 'bad', action: 'again', label: 'Use it here' },
  too_many_devices: { text: 'You are connected on too many devices; this one was let go.', kind: 'bad', action: 'again', label: 'Connect again' },
  protocol: { text: 'This page and the server do not understand each other. A newer page may.', kind: 'bad', action: 'reload', label: 'Reload' },
});

/** @type {Readonly<Record<string, string>>} */
const WAITING = Object.freeze({
  restart: 'The server is restarting.', rate_limited: 'The server asked for a pause.', overloaded: 'The server is busy.',
});

/**
 * What to say about the line, or null. @param {Status} line  @param {number} now of the same clock as `retryAt`  @returns {Banner|null}
 */
export function bannerOf({ state, reason, retryAt }, now) {
  if (state === 'live' || state === 'idle' || state === 'token') return null;
  if (state === 'stopped') return STOPPED[reason] ?? STOPPED.protocol;
  if (state === 'draining') return { text: 'The server is restarting. You will be back in a moment.', kind: 'calm', action: null, label: '' };
  if (state === 'connecting') return { text: 'Connecting…', kind: 'busy', action: null, label: '' };
  const left = retryAt - now;
  const why = WAITING[reason] ?? 'No connection.';
  if (left < 1000) return { text: `${why} Trying again…`, kind: 'busy', action: null, label: '' };
  return { text: `${why} Trying again in ${seconds(left)}.`, kind: 'busy', action: 'again', label: 'Try now' };
}

export class View {
  /** @param {{root: Element, signIn: any, list: any, pane: any, clock: import('./link.js').Clock, onAgain(): void}} parts */
  constructor({ root, signIn, list, pane, clock, onAgain }) {
    this.clock = clock;
    this.onAgain = onAgain;
    this.signIn = signIn;
    this.pane = pane;
    this.downSince = 0;
    this.bannerText = el('span');
    this.bannerButton = el('button', { type: 'button', on: { click: () => this.#act() } });
    this.banner = el('div', { class: 'banner', role: 'status', hidden: true }, el('span', { class: 'spinner', 'aria-hidden': 'true' }),
      this.bannerText, this.bannerButton);
    this.notices = el('div', { class: 'notices', role: 'status' });
    this.spoken = el('div', { class: 'vh', 'aria-live': 'polite' });
    this.place = el('div', { class: 'place' }, pane.placeholder);
    this.chat = el('div', { class: 'chat' }, list.node, el('main', { class: 'main' }, this.place));
    this.splash = el('div', { class: 'splash' }, el('img', { class: 'logo', src: '/icon.svg', alt: '', width: 56, height: 56 }));
    this.screen = el('div', { class: 'screen' }, this.splash);
    this.dialog = this.#makeDialog();
    root.append(this.banner, this.screen, this.notices, this.spoken, this.dialog);
    /** @type {'again'|'reload'|null} */
    this.action = null;
    /** @type {Question|null} what is asked now */
    this.asked = null;
  }

  /** @param {'splash'|'signin'|'chat'} which */
  show(which) {
    const node = { splash: this.splash, signin: this.signIn.node, chat: this.chat }[which];
    if (this.screen.firstChild !== node) this.screen.replaceChildren(node);
  }

  /** @param {boolean} isOpen whether a conversation is on the screen; on a phone it hides the list */
  showPane(isOpen) {
    const node = isOpen ? this.pane.node : this.pane.placeholder;
    if (this.place.firstChild !== node) this.place.replaceChildren(node);
    set(this.chat, 'class', isOpen ? 'chat shows-pane' : 'chat');
  }

  /** @param {Status} line  @param {boolean} isFirst nothing was shown before  @returns {number|null} when to call again */
  showLine(line, isFirst) {
    const now = this.clock.now();
    const banner = bannerOf(line, now);
    if (banner === null) this.downSince = 0;
    else if (this.downSince === 0) this.downSince = now;
    const isEarly = banner !== null && banner.kind === 'busy' && !isFirst && now - this.downSince < BANNER_AFTER_MS;
    this.banner.hidden = banner === null || isEarly;
    if (banner === null) return null;
    if (!isEarly) {
      set(this.banner, 'class', `banner ${banner.kind}`);
      say(this.bannerText, banner.text);
      say(this.bannerButton, banner.label);
      this.bannerButton.hidden = banner.action === null;
      this.action = banner.action;
    }
    return banner.kind === 'busy' ? now + (isEarly ? BANNER_AFTER_MS : 500) : null;
  }

  #act() {
    if (this.action === 'reload') location.reload();
    else if (this.action === 'again') this.onAgain();
  }

  /** A short notice. @param {string} text */
  notice(text) {
    const node = el('p', { class: 'notice', text });
    this.notices.append(node);
    while (this.notices.children.length > NOTICES_MAX) this.notices.firstChild.remove();
    this.clock.set(() => node.remove(), NOTICE_MS);
  }

  /** For those who do not see it. @param {string} text */
  speak(text) {
    this.spoken.replaceChildren(el('p', { text }));
  }

  /** In place of any question before. @param {Question} question */
  ask(question) {
    this.#answer(false);
    this.asked = question;
    say(this.dialog.question, question.text);
    say(this.dialog.yes, question.label);
    this.dialog.showModal();
  }

  /** Takes away a question about what has left the screen. To be called whenever that may have changed. */
  review() {
    if (this.asked !== null && !this.asked.stands()) this.#answer(false);
  }

  #makeDialog() {
    const question = el('p', { id: 'question' });
    const yes = el('button', { type: 'button', class: 'danger', on: { click: () => this.#answer(true) } });
    const no = el('button', { type: 'button', text: 'Cancel', autofocus: true, on: { click: () => this.#answer(false) } });
    const dialog = el('dialog', { 'aria-labelledby': 'question' }, question, el('div', { class: 'choices' }, no, yes));
    dialog.addEventListener('click', (/** @type {MouseEvent} */ event) => event.target === dialog && this.#answer(false));
    dialog.addEventListener('cancel', () => { this.asked = null; }); // by Escape, or Back on a phone
    return Object.assign(dialog, { question, yes });
  }

  /** @param {boolean} isYes */
  #answer(isYes) {
    const { asked } = this;
    this.asked = null;
    this.dialog.close();
    if (isYes && asked?.stands()) asked.confirmed();
  }
}
