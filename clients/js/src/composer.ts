/** What the user says, on its way into the outbox: judged, given a cid, and handed back as a promise with a handle. */

import type { CoreClient } from './core.js';
import { ChatError } from './errors.js';
import type { Sent } from './events.js';
import { isPeer } from './frames.js';
import { canRetry, type Draft, type Kind } from './outbox.js';
import type { Named } from './parts.js';
import type { Sending } from './sending.js';
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

/** The handle of something that waits. */
export function waiting(client: CoreClient, cid: string): Sending | null {
  const item = client._engine.outbox.find(cid);
  return item ? sending(client, cid, item.peer, client._waiters.of(cid)) : null;
}

/** A failed one anew, with a new cid; null where it cannot succeed, or did not fail. */
export function again(client: CoreClient, cid: string): Sending | null {
  const item = client._engine.outbox.find(cid);
  if (!item || !canRetry(item)) return null;
  void client.cancel(cid);
  const { peer, kind, body, ref: seq, refcid } = item;
  return say(client, peer, kind, body, kind === 'message' ? null : { seq, cid: refcid }, {});
}

/** Throws for a body that the server would refuse. */
export function check(client: CoreClient, body: string, cid: string): void {
  const { body_bytes } = client._engine.limits;
  const size = bodyBytes(body);
  if (body === '' || cleanBody(body) !== body) throw new ChatError({ code: 'bad_text', field: 'body', cid });
  if (size > body_bytes)
    throw new ChatError({ code: 'too_long', field: 'body', cid, msg: `${size} of ${body_bytes} bytes` });
}

/** Takes what is said. What is wrong with it rejects the promise. */
export function say(
  client: CoreClient,
  peer: string,
  kind: Kind,
  body: string | null,
  target: Target | null,
  { cid: given, signal }: SendOptions,
): Sending {
  const { outbox, sender } = client._engine;
  const cid = (given ?? uuid()).toLowerCase();
  const had = outbox.find(cid);
  try {
    signal?.throwIfAborted();
    if (!isPeer(peer)) throw new ChatError({ code: 'bad_peer', field: 'peer', cid });
    if (body !== null) check(client, body, cid);
    if (had && (had.kind !== kind || had.body !== body || had.peer !== peer))
      throw new ChatError({ code: 'cid_conflict', cid });
    const isGiven = given !== undefined;
    const { seq: ref, cid: refcid } = targeted(client, peer, target);
    const draft: Draft = { peer, cid, kind, body, ref, refcid, at: client.now(), tried: isGiven, isGiven };
    const promise = client._waiters.of(cid);
    if (!had && !sender.add(draft)) throw new ChatError({ code: 'outbox_full', cid });
    if (!had) client._together?.added(draft);
    return sending(client, cid, peer, signal ? abortable(client, cid, promise, signal) : promise);
  } catch (error) {
    return sending(client, cid, peer, Promise.reject(error));
  }
}

/** A message by seq has a cid too, if it is held: that one holds over a change of epoch. */
function targeted(client: CoreClient, peer: string, target: Target | null): Named {
  if (target === null) return { seq: null, cid: null };
  const named: Named =
    typeof target === 'object'
      ? target
      : typeof target === 'number'
        ? { seq: target, cid: null }
        : { seq: null, cid: target };
  const { seq, cid } = named;
  const held = client._held?.find(peer, named);
  return { seq: seq ?? held?.seq ?? null, cid: (cid ?? held?.cid)?.toLowerCase() ?? null };
}

/** One signal may be that of many sends, and outlive them: it keeps nothing of one that is done. */
function abortable<T>(client: CoreClient, cid: string, promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason);
      void client.cancel(cid);
    };
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).then(() => signal.removeEventListener('abort', abort));
  });
}

function sending(client: CoreClient, cid: string, peer: string, promise: Promise<Sent>): Sending {
  let sent: number | null = null;
  let isFailed = false;
  promise.then(
    ({ seq }) => (sent = seq),
    () => (isFailed = true),
  );
  const state = (): MessageState => {
    if (isFailed || client._engine.outbox.find(cid)?.state === 'failed') return 'failed';
    if (sent === null) return 'sending';
    return client._held?.reach(peer, sent) ?? 'sent';
  };
  // A promise of its own: each call has its handle, and nobody has to wait for it.
  const own = promise.then((value) => value);
  own.catch(() => {});
  return Object.defineProperties(own, {
    cid: { value: cid },
    state: { get: state },
    cancel: { value: () => client.cancel(cid) },
  }) as Sending;
}

/** Random, of version 4: `crypto.randomUUID` is not there on plain http. */
export function uuid(): string {
  const bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  const hex = bytes.map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20)}`;
}

/** An id for this device, where the application names none. */
export function madeDevice(): string {
  return `js-${uuid()}`;
}
