/** What the user says, on its way into the outbox: judged, given a cid, and handed back as a promise with a handle. */

import type { CoreClient } from './core.js';
import type { Engine } from './engine.js';
import { ChatError } from './errors.js';
import type { Sent } from './events.js';
import { isPeer } from './frames.js';
import { canRetry, type Draft, type Kind } from './outbox.js';
import type { Named } from './parts.js';
import type { Sending, Waiters } from './sending.js';
import type { MessageState } from './views.js';
import { bodyBytes, cleanBody } from './wire.js';

/** Which message an edit or delete is about: its seq, its cid, or the message of a snapshot. */
export type Target = number | string | Named;

export interface SendOptions {
  /** A UUID of the caller's: the same send again is the same one. */
  cid?: string;
  /** Ends the wait; what surely never left is taken back. */
  signal?: AbortSignal;
}

export class Composer {
  readonly #client: CoreClient;
  readonly #waiters: Waiters;

  constructor(client: CoreClient, waiters: Waiters) {
    this.#client = client;
    this.#waiters = waiters;
  }

  get #engine(): Engine {
    return this.#client._engine;
  }

  waiting(cid: string): Sending | null {
    const item = this.#engine.outbox.find(cid);
    return item ? this.#sending(cid, item.peer, this.#waiters.of(cid)) : null;
  }

  cancel(cid: string): Promise<boolean> {
    return this.#client._run('discard', cid);
  }

  again(cid: string): Sending | null {
    const item = this.#engine.outbox.find(cid);
    if (!item || !canRetry(item)) return null;
    void this.cancel(cid);
    const { peer, kind, body, ref: seq, refcid } = item;
    return this.say(peer, kind, body, kind === 'message' ? null : { seq, cid: refcid }, {});
  }

  /** Throws for a body that the server would refuse. */
  check(body: string, cid: string): void {
    const { body_bytes } = this.#engine.limits;
    const size = bodyBytes(body);
    if (body === '' || cleanBody(body) !== body) {
      throw new ChatError({
        code: 'bad_text',
        field: 'body',
        cid,
        msg: 'empty, or with control characters or half characters',
      });
    }
    if (size > body_bytes) {
      throw new ChatError({
        code: 'too_long',
        field: 'body',
        cid,
        msg: `${size} bytes of UTF-8; at most ${body_bytes}`,
      });
    }
  }

  /** Takes what is said. What is wrong with it rejects the promise. */
  say(
    peer: string,
    kind: Kind,
    body: string | null,
    target: Target | null,
    { cid: given, signal }: SendOptions,
  ): Sending {
    const cid = (given ?? uuid()).toLowerCase();
    const had = this.#engine.outbox.find(cid);
    try {
      signal?.throwIfAborted();
      if (!isPeer(peer)) throw new ChatError({ code: 'bad_peer', field: 'peer', cid, msg: 'nobody is named' });
      if (body !== null) this.check(body, cid);
      if (had && (had.kind !== kind || had.body !== body || had.peer !== peer))
        throw new ChatError({ code: 'cid_conflict', cid });
      const isGiven = given !== undefined;
      const { seq: ref, cid: refcid } = this.#target(peer, target);
      const draft: Draft = { peer, cid, kind, body, ref, refcid, at: this.#engine.now(), tried: isGiven, isGiven };
      const promise = this.#waiters.of(cid);
      if (!had && !this.#engine.sender.add(draft)) throw new ChatError({ code: 'outbox_full', cid });
      if (!had) this.#client._together?.added(draft);
      return this.#sending(cid, peer, signal ? this.#abortable(cid, promise, signal) : promise);
    } catch (error) {
      const failed = Promise.reject(error);
      failed.catch(() => {});
      return this.#sending(cid, peer, failed);
    }
  }

  /** A message by seq has a cid too, if it is held: that one holds over a change of epoch. */
  #target(peer: string, target: Target | null): Named {
    if (target === null) return { seq: null, cid: null };
    const named: Named =
      typeof target === 'object'
        ? target
        : typeof target === 'number'
          ? { seq: target, cid: null }
          : { seq: null, cid: target };
    const { seq, cid } = named;
    const held = this.#client._held?.find(peer, named);
    return { seq: seq ?? held?.seq ?? null, cid: (cid ?? held?.cid)?.toLowerCase() ?? null };
  }

  #abortable<T>(cid: string, promise: Promise<T>, signal: AbortSignal): Promise<T> {
    const aborted = new Promise<never>((_, reject) => {
      signal.addEventListener(
        'abort',
        () => {
          reject(signal.reason);
          void this.cancel(cid);
        },
        { once: true },
      );
    });
    const first = Promise.race([promise, aborted]);
    first.catch(() => {});
    return first;
  }

  #sending(cid: string, peer: string, promise: Promise<Sent>): Sending {
    let sent: number | null = null;
    let isFailed = false;
    promise.then(
      ({ seq }) => (sent = seq),
      () => (isFailed = true),
    );
    const state = (): MessageState => {
      if (isFailed || this.#engine.outbox.find(cid)?.state === 'failed') return 'failed';
      if (sent === null) return 'sending';
      return this.#client._held?.reach(peer, sent) ?? 'sent';
    };
    // A promise of its own: each call has its handle, and nobody has to wait for it.
    const own = promise.then((value) => value);
    own.catch(() => {});
    return Object.defineProperties(own, {
      cid: { value: cid },
      state: { get: state },
      cancel: { value: () => this.cancel(cid) },
    }) as Sending;
  }
}

/** Random, of version 4: `crypto.randomUUID` is not there on plain http. */
export function uuid(): string {
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  const hex = bytes.map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20)}`;
}
