/**
 * Changing one's own messages: an edit in the composer, a deletion after a question. Each belongs to the message that it was asked for, and ends
 * when that leaves the screen.
 *
 *      row ──edit, delete──► Target ──► composer, question ──save, confirmed──► client.js
 *                              └─ does it still stand? asked at each `review`, and before anything is done
 *
 * A Target is taken once, when it is asked for; from then on nobody asks the screen what it was. Words that were typed into an edit are
 * kept as a draft. No DOM: composer and view are injected.
 */

/** @typedef {import('./log.js').Message} Message */
/** @typedef {import('./model.js').Model} Model */
/** @typedef {Readonly<{user: string, peer: string, seq: number, ts: number, cid: string|null}>} Target what a question or an edit is about */
/** @typedef {{seq: number|null, ts: number, cid: string|null, body: string|null}} Line a row or a message */

/**
 * @param {Model} model  @param {string|null} peer  @param {{seq: number|null, ts: number, cid: string|null}} row
 * @returns {Target|null} null: nobody is on the screen, or it is not stored yet
 */
export function targetOf(model, peer, { seq, ts, cid }) {
  return peer === null || seq === null ? null : Object.freeze({ user: model.user, peer, seq, ts, cid });
}

/**
 * The message, as it is now: held, not deleted, its conversation on the screen. Else null.
 * @param {Model} model  @param {Target} target  @returns {Message|null}
 */
export function standing(model, { user, peer, seq, ts, cid }) {
  if (model.user !== user || model.shown !== peer) return null;
  // Its cid names it in every epoch. A seq does not: after a restore another message may have it, of another time.
  const isIt = (/** @type {Message} */ message) => (cid === null ? message.seq === seq && message.ts === ts : message.cid === cid);
  const message = model.conversations.get(peer)?.log.messages().find(isIt);
  return message && message.from === user && message.body !== null ? message : null;
}

export class Asking {
  /**
   * @param {{model: Model, client: import('./client.js').Client, view: import('./view.js').View,
   *   composer: import('./view-composer.js').ComposerView, isShown: () => boolean, taken: (item: object|null) => boolean}} parts
   * `isShown`: conversations are on the screen. `taken`: says it if the outbox did not take it
   */
  constructor({ model, client, view, composer, isShown, taken }) {
    this.model = model;
    this.client = client;
    this.view = view;
    this.composer = composer;
    this.isShown = isShown;
    this.taken = taken;
  }

  /** @param {string|null} peer  @param {Line} line */
  edit(peer, line) {
    const target = targetOf(this.model, peer, line);
    if (target !== null && this.composer.edit(target, line.body ?? '')) this.view.notice(`What you wrote is kept with your draft to ${target.peer}.`);
  }

  /** The user's last message, if there is still time. @param {string|null} peer */
  editLast(peer) {
    const { model } = this;
    const messages = peer === null ? [] : model.conversations.get(peer)?.log.messages() ?? [];
    const last = messages.filter(({ from, body }) => from === model.user && body !== null).pop();
    if (last && model.now() - last.ts < model.limits.edit_ms) this.edit(peer, last);
  }

  /** What the composer holds is to stand there. @param {Target} target  @param {string} body  @returns {boolean} whether it was taken */
  save(target, body) {
    const message = standing(this.model, target);
    if (message !== null) return this.taken(this.client.edit(target.peer, message.seq, body, message.cid));
    this.review();
    return false;
  }

  /** @param {string|null} peer  @param {Line} line */
  delete(peer, line) {
    const target = targetOf(this.model, peer, line);
    if (target === null) return;
    this.view.ask({
      text: 'Delete this message for both of you?', label: 'Delete', stands: () => this.#stands(target), confirmed: () => this.#delete(target),
    });
  }

  /** @param {Target} target */
  #delete(target) {
    const message = standing(this.model, target);
    if (message !== null) this.taken(this.client.delete(target.peer, message.seq, message.cid));
  }

  /** To be called whenever something may have left the screen. */
  review() {
    this.view.review();
    if (this.composer.review((target) => this.#stands(target))) {
      this.view.notice('The message can no longer be changed. What you wrote is kept below.');
    }
  }

  /** Another conversation comes onto the screen, or none. */
  leave() {
    const { peer } = this.composer;
    if (this.composer.review(() => false)) this.view.notice(`What you wrote is kept with your draft to ${peer}.`);
    this.view.review();
  }

  /** @param {Target} target */
  #stands(target) {
    return this.isShown() && standing(this.model, target) !== null;
  }
}
