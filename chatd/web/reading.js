/**
 * What counts as read, and where the line above the new messages stands.
 *
 *      the end of a message comes into view ──► lastInView ──► the read cursor
 *      unread, and nobody saw it come       ──► Divider    ──► the line
 *
 * A message is in view once its end is. The cursor moves to the last one that was in view while a user was there (attention.js), and by
 * nothing else: not by being loaded, nor by the pane being at its end.
 *
 * Pure.
 */

/**
 * The seq of the last message whose end is at or above `bottom`, or null.
 * @template T
 * @param {ArrayLike<T>} lines from the top down  @param {number} bottom
 * @param {(line: T) => number} endOf  @param {(line: T) => number|null} seqOf null: no message, or one that is not stored yet
 */
export function lastInView(lines, bottom, endOf, seqOf) {
  let low = 0;
  let high = lines.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (endOf(lines[mid]) <= bottom) low = mid + 1;
    else high = mid;
  }
  for (let i = low - 1; i >= 0; i -= 1) {
    const seq = seqOf(lines[i]);
    if (seq !== null) return seq;
  }
  return null;
}

/** The line stays where it was put until all under it is read; the next message that nobody saw come moves it. */
export class Divider {
  constructor() {
    /** @type {number|null} it stands above the peer's first message after this seq */
    this.after = null;
    this.isServed = true;
  }

  /** @param {{unread: number, read: number, missedTo: number}} it  @param {boolean} isWatched what comes now is seen as it comes */
  move({ unread, read, missedTo }, isWatched) {
    if (unread === 0) this.isServed = true;
    else if (this.isServed && !(isWatched && read >= missedTo)) {
      this.after = read;
      this.isServed = false;
    }
  }

  remove() {
    this.after = null;
    this.isServed = true;
  }
}
