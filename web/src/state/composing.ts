/**
 * What is being written: a draft to the person on the screen, or an edit of one message.
 *
 * What is in it belongs to the conversation that it was opened for, and an edit to its message. Words that somebody typed
 * are never thrown away: an edit that ends without being saved leaves them below the draft. No DOM.
 */

import { Cell } from './cell';
import { isSame, type Target } from './target';

export interface Writing {
  readonly peer: string | null;
  readonly text: string;
  readonly editing: { readonly target: Target; readonly body: string } | null;
}

export class Composing {
  readonly writing = new Cell<Writing>({ peer: null, text: '', editing: null });
  readonly #drafts: Map<string, string>;
  readonly #kept: () => void;
  #draft = '';

  /** `drafts`: peer -> text. `kept`: they are others now. */
  constructor(drafts: Map<string, string>, kept: () => void) {
    this.#drafts = drafts;
    this.#kept = kept;
  }

  /** Another conversation, or none. True: an edit ended, and its words are kept. */
  open(peer: string | null): boolean {
    const isKept = this.review(() => false);
    this.#draft = peer === null ? '' : (this.#drafts.get(peer) ?? '');
    this.writing.set({ peer, text: this.#draft, editing: null });
    return isKept;
  }

  /** The user typed. */
  type(text: string): void {
    const writing = this.writing.get();
    this.writing.set({ ...writing, text });
    if (writing.editing === null) this.#keep(text);
  }

  /** Begins an edit. True: one of another message ended, and its words are kept. */
  edit(target: Target, body: string): boolean {
    const { editing, peer } = this.writing.get();
    if (editing && isSame(editing.target, target)) return false; // or it would begin anew
    const isKept = this.review(() => false);
    this.writing.set({ peer, text: body, editing: { target, body } });
    return isKept;
  }

  /** The edit is saved or given up: the draft is there again. */
  endEdit(): void {
    const { peer, editing } = this.writing.get();
    if (editing) this.writing.set({ peer, text: this.#draft, editing: null });
  }

  /** Ends the edit of what can no longer be changed. True: words were typed, and are kept below the draft. */
  review(stands: (target: Target) => boolean): boolean {
    const { editing, text, peer } = this.writing.get();
    if (!editing || stands(editing.target)) return false;
    const isTyped = text !== editing.body && text !== '';
    if (isTyped) this.#keep(joined(this.#draft, text));
    this.writing.set({ peer, text: this.#draft, editing: null });
    return isTyped;
  }

  /** Words from elsewhere come below the draft. */
  take(words: string): void {
    const { editing, peer } = this.writing.get();
    this.#keep(joined(this.#draft, words));
    if (!editing) this.writing.set({ peer, text: this.#draft, editing });
  }

  #keep(text: string): void {
    this.#draft = text;
    const { peer } = this.writing.get();
    if (peer === null) return;
    this.#drafts.delete(peer); // the latest last: only so many are kept
    if (text !== '') this.#drafts.set(peer, text);
    this.#kept();
  }
}

function joined(...texts: string[]): string {
  return texts.filter((text) => text !== '').join('\n');
}
