/**
 * Where the line above the new messages stands.
 *
 * It stays where it was put until all under it is read; the next message that nobody saw come moves it. Pure.
 */

export class Divider {
  /** It stands above the peer's first message after this seq. */
  after: number | null = null;
  #isServed = true;

  /** `isWatched`: what comes now is seen as it comes. */
  move({ unread, read, missedTo }: { unread: number; read: number; missedTo: number }, isWatched: boolean): void {
    if (unread === 0) this.#isServed = true;
    else if (this.#isServed && !(isWatched && read >= missedTo)) {
      this.after = read;
      this.#isServed = false;
    }
  }

  remove(): void {
    this.after = null;
    this.#isServed = true;
  }
}
