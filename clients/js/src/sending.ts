/** What became of a send: a promise, and a handle for as long as it waits. */

import { ChatError, type Refusal } from './errors.js';
import type { Sent } from './events.js';
import type { MessageState } from './views.js';

/**
 * A send, edit or delete under way. As a promise it resolves once it is in the log, and rejects with ChatError once it
 * cannot be. Nobody has to wait for it: a rejection that nobody handles is no error of the program.
 */
export interface Sending extends Promise<Sent> {
  readonly cid: string;
  /** `sending` until it is in the log; then how far it has got. */
  readonly state: MessageState;
  /** Takes it back. True: it surely never is in the log. False: it is, or may be. */
  cancel(): Promise<boolean>;
}

interface Waiter {
  resolve(sent: Sent): void;
  reject(error: unknown): void;
}

/** Who waits for which cid. */
export class Waiters {
  readonly #waiting = new Map<string, { promise: Promise<Sent>; waiter: Waiter }>();

  of(cid: string): Promise<Sent> {
    const had = this.#waiting.get(cid);
    if (had) return had.promise;
    let waiter: Waiter | undefined;
    const promise = new Promise<Sent>((resolve, reject) => {
      waiter = { resolve, reject };
    });
    promise.catch(() => {}); // the stores and the event `failed` tell it too
    this.#waiting.set(cid, { promise, waiter: waiter as Waiter });
    return promise;
  }

  done(cid: string, sent: Sent): void {
    this.#waiting.get(cid)?.waiter.resolve(sent);
    this.#waiting.delete(cid);
  }

  failed(cid: string, err: Refusal): void {
    this.#waiting.get(cid)?.waiter.reject(new ChatError({ ...err, cid }));
    this.#waiting.delete(cid);
  }

  failAll(code: string, msg?: string): void {
    for (const cid of [...this.#waiting.keys()]) this.failed(cid, { code, msg });
  }
}
