/**
 * The message that a question or an edit is about. Taken once, when it is asked for: from then on nobody asks the screen
 * what it was, and nothing is done where it is no more. Pure.
 */

import type { Message } from '@chatd/client';

export interface Target {
  readonly user: string;
  readonly peer: string;
  readonly key: string;
  readonly seq: number | null;
  readonly cid: string | null;
  readonly ts: number;
}

export function targetOf(user: string, peer: string, { key, seq, cid, ts }: Message): Target {
  return { user, peer, key, seq, cid, ts };
}

export function isSame(one: Target, other: Target): boolean {
  return one.user === other.user && one.peer === other.peer && one.key === other.key;
}

/** The message as it is now: held, an own one, not deleted. Else null. */
export function standing(messages: readonly Message[], { user, cid, seq, ts }: Target): Message | null {
  // Its cid names it in every epoch. A seq does not: after a restore another message may have it, of another time.
  const isIt = (one: Message) => (cid === null ? one.seq === seq && one.ts === ts : one.cid === cid);
  const message = messages.find(isIt);
  return message && message.from === user && message.body !== null ? message : null;
}

/** It can be deleted: in the log, or surely not and so to be taken back. */
export function canDelete({ body, seq, waiting }: Message): boolean {
  if (body === null || (waiting?.kind === 'delete' && waiting.state === 'sending')) return false;
  return seq !== null || waiting?.canCancel === true;
}

/** It can be changed: in time, or while it surely never left. */
export function canEdit(message: Message, now: number, editMs: number): boolean {
  if (!canDelete(message)) return false;
  if (message.seq === null) return message.waiting?.state === 'sending';
  return now - message.ts < editMs;
}
