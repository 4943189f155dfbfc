/**
 * The composition root: makes the parts, feeds them the browser's events, and draws when something changed.
 *
 *      sign-in ─► token ─► client.js ⇄ server          store.js ⇄ local and session storage
 *                            │ Sink                        ▲ outbox, drafts
 *      attention.js ─away─►  ▼                             │
 *                          model.js ──changed()──► draw() ─┴─► views ──acts──► client.js, history.js
 *
 * Read cursors move here, and only by what is in view while somebody is there to see it.
 */

import { Asking } from './asking.js';
import { Attention } from './attention.js';
import { Client } from './client.js';
import { History } from './history.js';
import { Model } from './model.js';
import { SignIn } from './signin.js';
import { Store } from './store.js';
import { ComposerView } from './view-composer.js';
import { ListView } from './view-list.js';
import { PaneView } from './view-pane.js';
import { SignInView } from './view-signin.js';
import { View } from './view.js';
import { TYPING_REPEAT_MS, isPeer } from './wire.js';

/** "5 min ago" and the like are drawn anew so often. */
const REDRAW_MS = 30000;
/** Without an animation frame, draw after this. */
const HIDDEN_DRAW_MS = 250;
/** The conversation on the screen is cut back when it holds more; only at its end, where nobody sees it. */
const MESSAGES_MAX = 2000;
const MESSAGES_CUT_TO = 1000;
const NAME = 'chatd';

const clock = {
  now: () => Date.now(),
  set: (/** @type {() => void} */ fn, /** @type {number} */ ms) => setTimeout(fn, ms),
  clear: (/** @type {any} */ handle) => clearTimeout(handle),
};

/** `crypto.randomUUID` is there on https and localhost only. */
function uuid() {
  if (typeof crypto.randomUUID === 'function') return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/** @param {'sessionStorage'|'localStorage'} name */
function storage(name) {
  try {
    return window[name];
  } catch {
    return null;
  }
}

class App {
  /** @param {Store} store  @param {string} device */
  constructor(store, device) {
    this.store = store;
    this.signIn = new SignIn({ fetch: (...args) => fetch(...args) });
    /** @type {Map<string, string>} */
    this.drafts = new Map();
    this.typedAt = 0;
    this.isDrawing = false;
    this.restoredFor = '';
    /** Since the last sign-in. */
    this.isWelcomed = false;
    /** @type {Record<string, any>} */
    this.timers = {};
    /** @type {Client|null} */
    let client = null;
    this.model = new Model({
      now: () => client?.now() ?? Date.now(),
      changed: () => this.#changed(),
      pending: (peer) => client?.outbox.of(peer) ?? [],
      store: () => this.#keepOutbox(),
      dropped: (items) => this.#dropped(items.length),
      welcomed: (frame) => this.#welcomed(frame),
      arrived: (entry) => this.#arrived(entry),
    });
    this.client = client = new Client({
      url: `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`,
      device, sink: this.model, token: (renew) => this.signIn.token(renew), WebSocket, clock, uuid,
    });
    this.history = new History({ client, model: this.model, clock });
    this.attention = new Attention({
      clock, visible: document.visibilityState === 'visible', focused: document.hasFocus(), onWake: () => this.client.wake(), onLook: () => this.#changed(),
      onAway: (away) => {
        this.client.setAway(away);
        this.#changed();
      },
    });
    this.signInView = new SignInView({ onName: (name) => this.#enter({ name }), onToken: (token) => this.#enter({ token }) });
    this.list = new ListView({
      model: this.model, onOpen: (user) => this.open(user), onLeave: () => this.leave(), onReach: (peers) => this.history.previews(peers),
    });
    this.composer = this.#makeComposer();
    this.pane = this.#makePane();
    this.view = new View({
      root: document.getElementById('app') ?? document.body, signIn: this.signInView, list: this.list, pane: this.pane, clock,
      onAgain: () => this.client.connect(),
    });
    this.asking = new Asking({
      model: this.model, client, view: this.view, composer: this.composer, isShown: () => this.view.chat.isConnected,
      taken: (item) => this.#taken(item),
    });
    this.#listen();
  }

  /** @returns {ComposerView} */
  #makeComposer() {
    return new ComposerView({
      bytesMax: () => this.model.limits.body_bytes,
      onSend: (peer, body) => this.#send(peer, body),
      onEdit: (target, body) => this.asking.save(target, body),
      onTyping: (peer) => this.#typing(peer),
      onDraft: (peer, text) => this.#draft(peer, text),
      onEditLast: () => this.asking.editLast(this.pane.peer),
    });
  }

  /** @returns {PaneView} */
  #makePane() {
    return new PaneView({
      model: this.model, composer: this.composer,
      acts: {
        onEdit: (row) => this.asking.edit(this.pane.peer, row),
        onDelete: (row) => this.asking.delete(this.pane.peer, row),
        onAgain: (cid) => this.client.again(cid),
        onDiscard: (cid) => this.client.discard(cid),
      },
      canDiscard: (item) => this.client.outbox.canDiscard(item),
      history: this.history,
      onMoved: () => this.#read(),
      onBack: () => (history.state?.peer ? history.back() : this.open(null)),
    });
  }

  #listen() {
    const { attention } = this;
    document.addEventListener('visibilitychange', () => attention.see(document.visibilityState === 'visible'));
    for (const name of ['pointerdown', 'pointermove', 'keydown', 'wheel', 'touchstart']) {
      const isTouch = name !== 'pointermove' && name !== 'wheel';
      window.addEventListener(name, () => attention.stir(isTouch), { passive: true, capture: true });
    }
    for (const event of ['focus', 'blur']) window.addEventListener(event, () => attention.focus(event === 'focus'));
    for (const event of ['online', 'offline', 'focus', 'pageshow']) window.addEventListener(event, () => this.client.wake());
    document.addEventListener('resume', () => this.client.wake());
    window.addEventListener('popstate', (event) => this.open(event.state?.peer ?? null, false));
    window.addEventListener('keydown', (event) => this.#key(event));
    window.addEventListener('beforeunload', (event) => {
      if (!this.store.isKeeping && this.client.outbox.size > 0) event.preventDefault();
    });
    setInterval(() => this.#changed(), REDRAW_MS);
  }

  // --- who ----------------------------------------------------------------------------------------------------------

  /** Goes on as who this tab was, else asks. */
  async start() {
    const name = this.store.get('name');
    const token = this.store.get('token');
    if (name !== null) await this.#enter({ name });
    else if (token !== null) await this.#enter({ token });
    else this.#ask({ mode: await this.signIn.mode() });
  }

  /** @param {{name?: string, token?: string}} who */
  async #enter(who) {
    if (this.signInView.node.isConnected) this.#ask({ mode: who.name === undefined ? 'token' : 'name', isBusy: true });
    const { fault, mode } = await this.signIn.enter(who);
    if (fault !== null) {
      this.#ask({ mode, fault, name: who.name });
      return;
    }
    this.store.set('name', this.signIn.name);
    this.store.set('token', this.signIn.pasted);
    await this.store.lookAround();
    this.signInView.show({ mode });
    this.view.show('chat');
    this.isWelcomed = false;
    this.client.connect();
    this.#changed();
  }

  /** @param {{mode: 'name'|'token', fault?: string, isBusy?: boolean, name?: string}} facts */
  #ask(facts) {
    this.view.show('signin');
    this.asking.review();
    this.signInView.show(facts);
    if (!facts.isBusy) this.signInView.focus();
  }

  /** Who was never let in is told why: a name or a token may be wrong in itself. */
  #refused() {
    const { refusal } = this.client;
    if (this.isWelcomed || refusal === '') return 'Your access has ended. Sign in again to go on.';
    return `This ${this.signIn.isNamed ? 'name' : 'token'} is refused: ${refusal}.`;
  }

  /** Another name, please. What waits in the outbox is kept for when this one comes back. */
  async leave() {
    this.composer.review(() => false); // what was typed into an edit is a draft from now on
    this.#keepDrafts();
    this.drafts = new Map(); // before the next welcome somebody else may be at the screen
    this.client.forget();
    this.history.forget();
    this.model.forget();
    this.pane.open(null);
    this.composer.open(null);
    this.view.review();
    this.view.showPane(false);
    this.list.clear();
    this.restoredFor = '';
    for (const what of /** @type {const} */ (['name', 'token', 'open'])) this.store.set(what, null);
    this.signIn.leave();
    this.signInView.clear();
    if (history.state?.peer) history.replaceState(null, '');
    this.#ask({ mode: await this.signIn.mode() });
  }

  /** The first page of a welcome: now it is sure who it is. @param {{user: string, epoch: string}} frame */
  #welcomed({ user, epoch }) {
    this.isWelcomed = true;
    if (this.restoredFor === user) return;
    this.restoredFor = user;
    this.drafts = this.store.drafts(user);
    const saved = this.store.takeOutbox(user);
    this.client.outbox.restore(saved.items);
    if (saved.epoch !== epoch) this.#dropped(this.client.outbox.newEpoch().length);
    for (const peer of new Set(saved.items.map((item) => item.peer))) this.model.outbox(peer);
  }

  #keepOutbox() {
    const { user } = this.model;
    if (user !== '') this.store.keepOutbox(user, this.client.places.epoch ?? '', this.client.outbox.save());
  }

  /** @param {number} count */
  #dropped(count) {
    this.#keepOutbox();
    if (count === 1) this.view.notice('The server was restored from a backup: one change that waited is gone.');
    else if (count > 1) this.view.notice(`The server was restored from a backup: ${count} changes that waited are gone.`);
  }

  // --- what the user does -------------------------------------------------------------------------------------------

  /** @param {unknown} who null: nobody  @param {boolean} [push] whether Back shall lead here */
  open(who, push = true) {
    const peer = isPeer(who) ? who : null; // it may come from storage or the browser's history
    if (peer === this.pane.peer) {
      if (peer !== null) this.composer.focus();
      return;
    }
    this.pane.open(peer);
    this.model.show(peer);
    this.store.set('open', peer);
    this.view.showPane(peer !== null);
    this.asking.leave();
    if (peer === null) this.composer.open(null);
    else {
      this.composer.open(peer, peer === this.model.user ? 'Write a note' : `Message to ${peer}`, this.drafts.get(peer) ?? '');
      if (push) this.#push(peer);
      if (!matchMedia('(pointer: coarse)').matches) this.composer.focus();
    }
    this.#changed();
  }

  /** On a narrow screen the pane is a page of its own. @param {string} peer */
  #push(peer) {
    if (!this.isNarrow) return;
    if (history.state?.peer) history.replaceState({ peer }, '');
    else history.pushState({ peer }, '');
  }

  /** @param {string} peer  @param {string} body */
  #send(peer, body) {
    const isTaken = this.#taken(this.client.send(peer, body));
    this.typedAt = 0;
    if (isTaken) {
      this.#draw();
      this.pane.toEnd();
      this.pane.unmark();
    }
    return isTaken;
  }

  /** @param {object|null} item */
  #taken(item) {
    if (item === null) this.view.notice('Too much waits to be sent already. Try again when the connection is back.');
    return item !== null;
  }

  /** @param {string} peer */
  #typing(peer) {
    const it = this.model.conversations.get(peer);
    const now = Date.now();
    if (!it?.open || peer === this.model.user || now - this.typedAt < TYPING_REPEAT_MS) return;
    this.typedAt = now;
    this.client.typing(peer).catch(() => {}); // a sign, no promise
  }

  /** @param {string} peer  @param {string} text */
  #draft(peer, text) {
    this.drafts.delete(peer); // the latest last: only so many are kept
    this.drafts.set(peer, text);
    clearTimeout(this.timers.drafts);
    this.timers.drafts = setTimeout(() => this.#keepDrafts(), 300);
  }

  #keepDrafts() {
    clearTimeout(this.timers.drafts);
    if (this.model.user !== '') this.store.keepDrafts(this.model.user, this.drafts);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'k' && this.view.chat.isConnected) {
      event.preventDefault();
      this.open(this.isNarrow ? null : this.pane.peer);
      this.list.focusSearch();
    }
  }

  get isNarrow() {
    return matchMedia('(max-width: 720px)').matches;
  }

  // --- what is seen -------------------------------------------------------------------------------------------------

  get isSeen() {
    return this.attention.isPresent && this.view.chat.isConnected;
  }

  /** Read is what was in view while somebody was there to see it. */
  #read() {
    const { peer } = this.pane;
    const seq = peer === null || !this.isSeen ? null : this.pane.seenTo();
    if (peer === null || seq === null) return;
    this.client.read(peer, seq);
    this.model.see(peer, seq);
  }

  /** @param {import('./wire.js').Entry} entry */
  #arrived({ from, body }) {
    if (from === this.pane.peer && this.isSeen) this.view.speak(`${from}: ${body ?? ''}`);
    else this.view.speak(`New message from ${from}`);
  }

  #changed() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    const draw = () => {
      if (!this.isDrawing) return;
      this.isDrawing = false;
      clearTimeout(this.timers.draw);
      this.#draw();
    };
    // A hidden or covered page gets few animation frames or none, but its title must go on counting.
    this.timers.draw = setTimeout(draw, HIDDEN_DRAW_MS);
    requestAnimationFrame(draw);
  }

  #draw() {
    const { model, view } = this;
    const count = model.unread();
    document.title = count > 0 ? `(${count}) ${NAME}` : NAME;
    if (model.line.state === 'token' && view.chat.isConnected) {
      this.#ask({ mode: this.signIn.isNamed ? 'name' : 'token', fault: this.#refused(), name: this.signIn.name ?? '' });
    }
    if (!view.chat.isConnected) {
      view.showLine({ state: 'idle', reason: '', retryAt: 0 }, false);
      return;
    }
    this.#later('banner', view.showLine(model.line, !model.known));
    if (model.known && this.pane.peer === null) this.#reopen();
    if (model.shown === null && this.pane.peer !== null) this.open(null);
    this.asking.review();
    this.pane.render(this.isSeen);
    this.#read();
    this.list.render({ away: this.attention.away });
    this.#watch();
    this.#cut();
    const ends = model.typingEnds();
    this.#later('typing', ends === null ? null : Date.now() + ends - model.now());
  }

  /** After a reload: the conversation that was on the screen. */
  #reopen() {
    const peer = this.store.get('open');
    if (peer !== null) this.open(peer, false);
  }

  /** Draws again at that time. @param {string} name  @param {number|null} at */
  #later(name, at) {
    clearTimeout(this.timers[name]);
    if (at !== null) this.timers[name] = setTimeout(() => this.#changed(), Math.max(20, at - Date.now()));
  }

  /** Whom the list shows first; told again only when somebody comes or goes, not when the order changes. */
  #watch() {
    const { model } = this;
    if (!model.isLive || !model.known) return;
    const peers = model.sorted().map(({ peer }) => peer).filter((peer) => peer !== model.user).slice(0, model.limits.watch);
    if (model.shown !== null && model.shown !== model.user && !peers.includes(model.shown)) peers.splice(-1, 1, model.shown);
    const before = new Set(this.client.watched);
    if (peers.length !== before.size || peers.some((peer) => !before.has(peer))) this.client.watch(peers);
  }

  #cut() {
    const it = this.pane.peer === null ? undefined : this.model.conversations.get(this.pane.peer);
    if (it && this.pane.isSettled && this.pane.isAtEnd && it.log.messages().length > MESSAGES_MAX) it.log.trim(MESSAGES_CUT_TO);
  }
}

const store = new Store({ session: storage('sessionStorage'), local: storage('localStorage'), locks: navigator.locks ?? null, uuid });
new App(store, await store.claimDevice()).start();
