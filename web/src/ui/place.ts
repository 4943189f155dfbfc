/**
 * Where the eye is in a log, and what follows from it: what was seen, what is fetched, what stays in view.
 *
 * Where the eye is, it stays: whatever comes above or below, the first line in sight keeps its place (virtua does that,
 * and `#aim` where the window changes its size). At the end the log follows what comes, but never past the first message
 * that nobody has seen, nor past one that was seen for a blink only. It follows what was measured, not what was guessed: one
 * scroll a message, in the frame in which the message is drawn. A log opens at the line above its new messages, else
 * at its end; also when it is long open and all that was held of it had to go.
 */

import type { MessagesView } from '@chatd/client';
import type { VirtualizerHandle } from 'virtua';
import { Divider } from '../pure/reading';
import type { Row } from '../pure/rows';

const END_PX = 48;
/** Further messages are fetched when the top or the bottom is this near. */
const REACH_PX = 900;
export const LINE_FROM_TOP_PX = 72;
/** A line further from what is held than this is gone to at once, without what lies between. */
const WAY_ENTRIES_MAX = 200;
/** What comes within this time stays in view as a whole, or the rest of it waits below. */
const BURST_MS = 1000;
/** A burst goes on while no gap is longer than that. */
const BURST_GAP_MS = 300;
/** Places are rounded. */
const ROUNDING_PX = 2;

export interface PlaceParts {
  /** Fetches; resolves when it is there, or cannot be for now. */
  load(way: 'older' | 'newer' | 'latest' | { after: number }): Promise<void>;
  /** Everything up to there was in view. `isLast`: no message follows in the log as it was drawn. */
  seen(seq: number, isLast: boolean): void;
  /** The read cursor as it is now. */
  read(): number;
  isOnline(): boolean;
  /** `isAtEnd` or `isSettled` is another. */
  changed(): void;
}

/** Where the view is to be, and stays until it is measured: at the end, or a message so far from the top. */
type Aim = 'end' | { readonly key: string; readonly fromTop: number };

export class Place {
  scroller: HTMLElement | null = null;
  list: VirtualizerHandle | null = null;
  readonly divider = new Divider();
  isAtEnd = true;
  isSettled = false;
  /** After a reconnection what is held may have changed. */
  isStale = false;
  readonly #parts: PlaceParts;
  #view: MessagesView | null = null;
  #rows: readonly Row[] = [];
  #aim: Aim | null = null;
  /** The first message in sight, and where. */
  #anchor: Exclude<Aim, 'end'> | null = null;
  #isLeaping = false;
  /** It followed to the very end. What moves that since (rows, a scroll, the window) tells so. */
  #isDown = false;
  /** The last row is there and not measured yet: the end is where it was until it is. */
  #isMeasuring = false;
  /** The read cursor when the burst of now began. */
  #burst = { at: -Infinity, last: -Infinity, read: 0 };
  #isFilling = false;
  #isSeeing = false;

  constructor(parts: PlaceParts) {
    this.#parts = parts;
  }

  /** Before rendering: all that was held may have gone, and the line may move. */
  begin(view: MessagesView, isPresent: boolean): boolean {
    if (this.isSettled && view.messages.length === 0 && view.hasOlder) this.#anew();
    const isWatched = isPresent && this.isSettled && this.isAtEnd;
    this.divider.move(view, isWatched);
    return isWatched;
  }

  /** After rendering. True: the line above the new messages moved, so render again. */
  rendered(view: MessagesView, rows: readonly Row[], isWatched: boolean): boolean {
    const isFollowing = this.isSettled && this.isAtEnd && this.#aim === null;
    const isStill = isFollowing && this.#isDown && rows === this.#rows && isLike(view, this.#view);
    this.#view = view;
    this.#rows = rows;
    this.#isMeasuring = isFollowing && this.#isLastHidden();
    // What follows asks for the layout: that is of no use before it is measured, and costs one where nothing moved.
    if (!isFollowing) this.measured();
    else if (!this.#isMeasuring && !isStill) {
      this.#follow();
      this.#look();
    }
    if (!this.isSettled) this.#settle(view);
    if (!this.#isMeasuring && !isStill) this.#fill();
    this.#seeSoon();
    if (!isWatched || this.isAtEnd) return false;
    const { after } = this.divider; // more came at once than there is room for
    this.divider.move(view, false);
    return after !== this.divider.after;
  }

  /** The user wants to be at the end: nothing holds them at what they have not seen. */
  toEnd(): void {
    this.#burst.at = this.#burst.last = -Infinity;
    this.#aim = 'end';
    if (this.#view?.hasNewer && this.#parts.isOnline()) {
      this.#isLeaping = true;
      void this.#parts.load('latest').finally(() => {
        this.#isLeaping = false;
        this.#aim = 'end';
        this.#burst.at = this.#burst.last = -Infinity;
        this.measured();
      });
    }
    this.measured();
  }

  /** The sizes of what is in view are known, or others. */
  measured(): void {
    const { scroller } = this;
    const wasMeasuring = this.#isMeasuring;
    this.#isMeasuring = false;
    if (!scroller || this.#rows.length === 0) return;
    if (this.#aim === 'end') {
      scroller.scrollTop = scroller.scrollHeight;
      if (this.#isMeasured()) this.#aim = null;
    } else if (this.#aim !== null) this.#goTo(this.#aim);
    else if (this.isSettled && this.isAtEnd) this.#follow();
    this.#look();
    if (wasMeasuring) this.#fill();
    this.see();
  }

  /** The window has another size: what was in sight stays there. */
  resized(): void {
    if (!this.isAtEnd && this.isSettled) this.#aim = this.#anchor;
    this.measured();
  }

  scrolled(): void {
    if (!this.isSettled) return;
    this.#look();
    this.#fill();
    this.see();
  }

  /** The user took the wheel: no aim holds any more. */
  taken(): void {
    if (this.isSettled) this.#aim = null;
    this.#isMeasuring = false;
  }

  /** The row that stands so far above what is in view; null where nothing is in view yet. */
  rowAbove(px: number): number | null {
    return this.list && this.isSettled ? this.list.findItemIndex(Math.max(0, this.list.scrollOffset - px)) : null;
  }

  /** Tells how far the log has been in view. */
  see(): void {
    const view = this.#view;
    if (!view || !this.isSettled || this.#isLeaping || this.#aim !== null) return;
    const seq = this.seenTo();
    if (seq === null) return;
    const last = view.messages.findLast((message) => message.seq !== null);
    this.#parts.seen(seq, !view.hasNewer && seq === last?.seq);
  }

  /** Rows are measured in the frame after the one that they came in, and nobody tells where the guess was right. */
  #seeSoon(): void {
    if (this.#isSeeing) return;
    this.#isSeeing = true;
    requestAnimationFrame(() =>
      requestAnimationFrame(() => {
        this.#isSeeing = false;
        if (this.#isMeasuring) this.measured();
        else this.see();
      }),
    );
  }

  /** The last message whose end is in view, or null while that is not known. */
  seenTo(): number | null {
    const { scroller } = this;
    if (!scroller || scroller.clientHeight === 0) return null;
    const bottom = scroller.getBoundingClientRect().bottom + ROUNDING_PX;
    const nodes = this.#nodes();
    for (let i = nodes.length - 1; i >= 0; i -= 1) {
      const node = nodes[i] as HTMLElement;
      const { bottom: end, height } = node.getBoundingClientRect();
      if (end > bottom || height === 0) continue;
      if (!isDrawn(node)) return null;
      if (node.dataset.seq !== undefined) return Number(node.dataset.seq);
    }
    return null;
  }

  nodeOf(key: string): HTMLElement | null {
    return [...this.#nodes()].find((node) => keyOf(node) === key) ?? null;
  }

  // --- inside -------------------------------------------------------------------------------------------------------

  #nodes(): NodeListOf<HTMLElement> {
    return (this.scroller as HTMLElement).querySelectorAll<HTMLElement>('.message');
  }

  #isLastHidden(): boolean {
    const nodes = this.#nodes();
    const node = nodes[nodes.length - 1];
    return node !== undefined && keyOf(node) === this.#rows.at(-1)?.key && !isDrawn(node);
  }

  #anew(): void {
    this.divider.remove();
    this.isAtEnd = true;
    this.isSettled = this.#isLeaping = this.#isMeasuring = false;
    this.#aim = this.#anchor = null;
    this.#burst = { at: -Infinity, last: -Infinity, read: 0 };
  }

  /** Opening: to the line if there is one, once its place is known. */
  #settle(view: MessagesView): void {
    const first = view.messages.find(({ seq }) => seq !== null)?.seq ?? null;
    const { after } = this.divider;
    if (first === null && view.hasOlder) return;
    if (after !== null && view.hasOlder && first !== null && first > after + 1) {
      if (this.#parts.isOnline()) void this.#parts.load(first - after > WAY_ENTRIES_MAX ? { after } : 'older');
      return;
    }
    if (this.#rows.length === 0) {
      this.isSettled = true;
      return;
    }
    const line = this.#rows.find(({ isFirstNew }) => isFirstNew);
    this.#aim ??= line ? { key: line.key, fromTop: LINE_FROM_TOP_PX } : 'end';
    this.isSettled = true;
    this.measured();
  }

  /** To the end, or as near to it as the first new message allows. */
  #follow(): void {
    const { scroller } = this;
    if (!scroller || this.#isLeaping) return;
    const read = this.#parts.read();
    const now = performance.now();
    const isOver = now - this.#burst.at > BURST_MS && now - this.#burst.last > BURST_GAP_MS;
    if (isOver) this.#burst = { at: now, last: now, read };
    this.#burst.last = now;
    const first = this.#firstAfter(Math.min(read, this.#burst.read));
    const end = scroller.scrollHeight - scroller.clientHeight;
    const top =
      first === null ? end : Math.max(scroller.scrollTop, Math.min(end, this.#topOf(first) - LINE_FROM_TOP_PX));
    if (Math.abs(top - scroller.scrollTop) >= 1) scroller.scrollTop = top;
    this.#isDown = top === end;
  }

  /** The index of the peer's first message after that seq. */
  #firstAfter(read: number): number | null {
    let first = null;
    for (let i = this.#rows.length - 1; i >= 0; i -= 1) {
      const { message, own } = this.#rows[i] as Row;
      if (message.seq !== null && message.seq <= read) break;
      if (message.seq !== null && !own) first = i;
    }
    return first;
  }

  /** Where a row begins, in the scroller. */
  #topOf(index: number): number {
    const scroller = this.scroller as HTMLElement;
    const node = this.nodeOf(this.#rows[index]?.key ?? '');
    if (!node) return this.list?.getItemOffset(index) ?? 0;
    return node.getBoundingClientRect().top - scroller.getBoundingClientRect().top + scroller.scrollTop;
  }

  #goTo({ key, fromTop }: Exclude<Aim, 'end'>): void {
    const scroller = this.scroller as HTMLElement;
    const index = this.#rows.findIndex((row) => row.key === key);
    if (index < 0) {
      this.#aim = null;
      return;
    }
    const top = this.#topOf(index) - fromTop;
    if (Math.abs(top - scroller.scrollTop) >= 1) scroller.scrollTop = top;
    if (this.nodeOf(key) && this.#isMeasured()) this.#aim = null;
  }

  /** All that is in view was measured, so that its place is true. */
  #isMeasured(): boolean {
    const { top, bottom } = (this.scroller as HTMLElement).getBoundingClientRect();
    const inView = [...this.#nodes()].filter((node) => {
      const rect = node.getBoundingClientRect();
      return rect.bottom > top && rect.top < bottom;
    });
    return inView.length > 0 && inView.every(isDrawn);
  }

  #look(): void {
    const { scroller } = this;
    if (!scroller) return;
    const { scrollHeight, scrollTop, clientHeight } = scroller;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < END_PX && this.#view?.hasNewer !== true;
    // At the end it is of no use, and asks for the places of all rows.
    if (!isAtEnd && this.#aim === null && clientHeight > 0) this.#anchor = this.#firstInSight();
    if (isAtEnd === this.isAtEnd || this.#isMeasuring) return;
    this.isAtEnd = isAtEnd;
    this.#parts.changed();
  }

  #firstInSight(): Exclude<Aim, 'end'> | null {
    const top = (this.scroller as HTMLElement).getBoundingClientRect().top;
    for (const node of this.#nodes()) {
      const rect = node.getBoundingClientRect();
      if (rect.bottom > top && isDrawn(node)) return { key: keyOf(node), fromTop: rect.top - top };
    }
    return null;
  }

  /** What is near, above and below. */
  #fill(): void {
    const { scroller } = this;
    const view = this.#view;
    if (!scroller || !view || !this.isSettled || this.#isFilling || !this.#parts.isOnline()) return;
    const { scrollHeight, scrollTop, clientHeight } = scroller;
    if (!view.hasNewer) this.isStale = false;
    const isNear = scrollHeight - scrollTop - clientHeight < REACH_PX;
    if (view.hasNewer && (this.isStale || isNear)) this.#load('newer', view);
    else if (view.hasOlder && scrollTop < REACH_PX) this.#load('older', view);
  }

  #load(way: 'older' | 'newer', { messages }: MessagesView): void {
    this.#isFilling = true;
    const last = messages.at(-1)?.seq;
    void this.#parts.load(way).finally(() => {
      this.#isFilling = false;
      if (this.#view?.messages.at(-1)?.seq !== last) this.isStale = false;
    });
  }
}

/** The same may be fetched. */
function isLike(view: MessagesView, old: MessagesView | null): boolean {
  return view.hasNewer === old?.hasNewer && view.hasOlder === old.hasOlder;
}

function keyOf(node: HTMLElement): string {
  return node.dataset.key ?? '';
}

/** The window's rows are hidden until they are measured. */
function isDrawn(node: HTMLElement): boolean {
  return node.closest('li')?.style.visibility !== 'hidden';
}
