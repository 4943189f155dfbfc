/** Messages as the SDK shows them, with what a test does not care about. */

import type { Message, Waiting } from '@chatd/client';

export const ME = 'alice';
export const PEER = 'bob';
export const MINUTE = 60_000;
export const DAY = 24 * 60 * MINUTE;
/** A Wednesday. */
export const NOON = new Date(2026, 5, 17, 12).getTime();

export function message(seq: number | null, facts: Partial<Message> = {}): Message {
  const from = facts.from ?? PEER;
  const state = from === ME ? 'sent' : 'received';
  const cid = from === ME ? `c${seq}` : null;
  const made = {
    seq,
    cid,
    ts: NOON,
    from,
    body: `m${seq}`,
    edited: null,
    deleted: null,
    state,
    waiting: null,
  } as const;
  return { key: facts.cid ?? cid ?? String(seq), ...made, ...facts };
}

export function waiting(facts: Partial<Waiting> = {}): Waiting {
  const made = { cid: 'w', peer: PEER, kind: 'message', body: 'w', at: NOON, state: 'sending' } as const;
  return { ...made, code: null, canCancel: true, canRetry: false, ...facts };
}
