/**
 * One user's session on the page: who is on the screen, what is asked, noticed and said aloud, and what the user does.
 *
 *      components ──acts──► Desk ──► ChatClient          cells ──► components
 *
 * Read cursors move by what was in view while somebody was there (ui/place.ts), and by nothing else.
 */

import type { ChatClient, ChatError, Message } from '@chatd/client';
import type { Attention } from './attention';
import { Cell } from './cell';
import { Composing } from './composing';
import type { Keep } from './keep';
import { canEdit, standing, type Target, targetOf } from './target';

const NOTICE_MS = 6000;
const NOTICES_MAX = 3;
const DRAFTS_DELAY_MS = 300;

/** `stands`: that which it is about is still there to be seen; `confirmed` is called only then. */
export interface Question {
  readonly text: string;
  readonly label: string;
  readonly stands: () => boolean;
  readonly confirmed: () => void;
}

export class Desk {
  readonly client: ChatClient;
  readonly user: string;
  readonly attention: Attention;
  readonly composing: Composing;
  /** Who is on the screen. */
  readonly peer = new Cell<string | null>(null);
  readonly question = new Cell<Question | null>(null);
  readonly notices = new Cell<readonly { id: number; text: string }[]>([]);
  /** For those who do not see it. */
  readonly spoken = new Cell('');
  /** A welcome was complete. */
  readonly isKnown = new Cell(false);
  /** Counts what the user did that brings the log to its end. */
  readonly toEnd = new Cell(0);
  /** The message that is to get the focus. */
  readonly focusOn = new Cell<string | null>(null);
  readonly #keep: Keep;
  readonly #drafts: Map<string, string>;
  readonly #leaving: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #noticed = 0;
  #unwatch = () => {};
  #isOpen = true;

  constructor(client: ChatClient, user: string, attention: Attention, keep: Keep) {
    this.client = client;
    this.user = user;
    this.attention = attention;
    this.#keep = keep;
    this.#drafts = keep.drafts(user);
    this.composing = new Composing(this.#drafts, () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.keepDrafts(), DRAFTS_DELAY_MS);
    });
    this.#leaving.push(
      client.on('synced', () => this.isKnown.set(true)),
      client.on('message', ({ peer, body }) => {
        const isSeen = peer === this.peer.get() && attention.isHere;
        this.spoken.set(isSeen ? `${peer}: ${body ?? ''}` : `New message from ${peer}`);
      }),
      client.on('store', () => this.notice('Nothing can be stored here: what is not sent yet is lost with this page.')),
    );
    this.open(keep.get('open'));
  }

  /** Somebody else comes. What was typed at the last moment is a draft. */
  close(): void {
    this.#isOpen = false;
    this.composing.review(() => false);
    this.keepDrafts();
    this.#unwatch();
    for (const leave of this.#leaving) leave();
  }

  keepDrafts(): void {
    clearTimeout(this.#timer);
    this.#keep.keepDrafts(this.user, this.#drafts);
  }

  /** Another conversation, or none, comes onto the screen. */
  open(peer: string | null): void {
    const before = this.peer.get();
    if (peer === before) return;
    this.#unwatch();
    this.peer.set(peer);
    this.#keep.set('open', peer);
    if (this.composing.open(peer)) this.notice(`What you wrote is kept with your draft to ${before}.`);
    this.#unwatch = peer === null ? () => {} : this.client.stores.messages(peer).subscribe(() => this.review());
    this.review();
  }

  /** A short notice. */
  notice(text: string): void {
    this.#noticed += 1;
    const id = this.#noticed;
    this.notices.set([...this.notices.get(), { id, text }].slice(-NOTICES_MAX));
    setTimeout(() => this.notices.set(this.notices.get().filter((one) => one.id !== id)), NOTICE_MS);
  }

  // --- what the user does -------------------------------------------------------------------------------------------

  send(peer: string, body: string): void {
    this.client.send(peer, body).catch((error: ChatError) => this.#notTaken(error, body));
    this.toEnd.set(this.toEnd.get() + 1);
  }

  edit(peer: string, message: Message): void {
    if (!canEdit(message, this.client.now(), this.client.limits.edit_ms)) return;
    const waiting = message.waiting?.kind === 'edit' ? message.waiting.body : null;
    if (this.composing.edit(targetOf(this.user, peer, message), waiting ?? message.body ?? '')) {
      this.notice(`What you wrote is kept with your draft to ${peer}.`);
    }
  }

  /** The user's last message, if there is still time. */
  editLast(): void {
    const peer = this.peer.get();
    const last = this.#messages(peer).findLast(({ from, body }) => from === this.user && body !== null);
    if (peer !== null && last) this.edit(peer, last);
  }

  /** What the composer holds is to stand there. False: it cannot, and the words are kept. */
  save(target: Target, body: string): boolean {
    const message = this.#stands(target);
    if (!message) {
      this.review();
      return false;
    }
    if (message.seq === null) void this.#amend(target, body);
    else this.client.edit(target.peer, message, body).catch((error: ChatError) => this.#notTaken(error, body));
    return true;
  }

  /** What never left is changed where it waits; it may have left since. */
  async #amend(target: Target, body: string): Promise<void> {
    if (target.cid !== null && (await this.client.amend(target.cid, body))) return;
    const message = standing(this.#messages(target.peer), target);
    if (message && message.seq !== null) this.client.edit(target.peer, message, body).catch(() => {});
    else if (target.cid !== null) this.client.edit(target.peer, target.cid, body).catch(() => {});
  }

  delete(peer: string, message: Message): void {
    const target = targetOf(this.user, peer, message);
    this.ask({
      text:
        message.seq === null ? 'Delete this message, which was not sent yet?' : 'Delete this message for both of you?',
      label: 'Delete',
      stands: () => this.#stands(target) !== null,
      confirmed: () => void this.#delete(target),
    });
  }

  async #delete(target: Target): Promise<void> {
    const message = this.#stands(target);
    if (!message) return;
    this.focusOn.set(null);
    this.focusOn.set(message.key);
    if (message.seq !== null)
      this.client.delete(target.peer, message).catch((error: ChatError) => this.#notTaken(error, ''));
    else if (message.cid !== null && !(await this.client.cancel(message.cid))) {
      this.client.delete(target.peer, message.cid).catch(() => {});
    }
  }

  /** Words of something that cannot succeed become the draft. */
  takeWords(cid: string, words: string): void {
    this.composing.take(words);
    void this.client.cancel(cid);
  }

  /** It was refused before it waited: what is in the way is said, and the words come back. */
  #notTaken({ code }: ChatError, body: string): void {
    const why: Record<string, string> = {
      outbox_full: 'Too much waits to be sent already. Try again when the connection is back.',
      too_long: 'The message is too long.',
      bad_text: 'The message has characters that cannot be sent.',
      bad_peer: 'Nobody is named.',
    };
    const text = why[code];
    if (text === undefined) return; // it is told beside the message
    if (body !== '') this.composing.take(body);
    this.notice(text);
  }

  // --- questions ----------------------------------------------------------------------------------------------------

  /** In place of any question before. */
  ask(question: Question): void {
    this.question.set(question);
  }

  answer(isYes: boolean): void {
    const asked = this.question.get();
    this.question.set(null);
    if (isYes && this.#isOpen && asked?.stands()) asked.confirmed();
  }

  /** Something may have left the screen: a question or an edit about it ends. */
  review(): void {
    const asked = this.question.get();
    if (asked && !asked.stands()) this.question.set(null);
    if (this.composing.review((target) => this.#stands(target) !== null)) {
      this.notice('The message can no longer be changed. What you wrote is kept below.');
    }
  }

  #stands(target: Target): Message | null {
    if (!this.#isOpen || target.user !== this.user || target.peer !== this.peer.get()) return null;
    return standing(this.#messages(target.peer), target);
  }

  #messages(peer: string | null): readonly Message[] {
    return peer === null ? [] : this.client.stores.messages(peer).getSnapshot().messages;
  }
}
