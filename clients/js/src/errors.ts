/** The one error of this package: a stable `code`, and what the server said with it. */

import type { Frame } from './frames.js';
import { retryMs } from './wire.js';

/** What an `err` frame says, or the same made here. */
export interface Refusal {
  code: string;
  msg?: string | undefined;
  retry_ms?: number | undefined;
  field?: string | undefined;
  cid?: string | undefined;
}

/**
 * A request that failed: by an `err` of the server (its codes are in section 9 of docs/protocol.md), or here:
 *  - `disconnected`  not online, or the connection ended before the answer
 *  - `stopped`       the client was stopped
 *  - `cancelled`     taken back before it left
 *  - `outbox_full`   more waits than the outbox takes
 *  - `bad_peer`      nobody is named
 *  - `cid_conflict`  the cid was used before, for something else
 *  - `epoch_changed` a change by `seq` of a log that is no more
 *  - `bad_text`, `too_long`  the body, checked before it is sent
 */
export class ChatError extends Error {
  override readonly name = 'ChatError';
  /** Stable; for programs. */
  readonly code: string;
  /** When another try may help, in ms from now; null: another try does not help. */
  readonly retryMs: number | null;
  /** The key of the request that was wrong, if the server named it. */
  readonly field: string | null;
  /** The send that this is about, if it is about one. */
  readonly cid: string | null;

  constructor({ code, msg, retry_ms, field, cid }: Refusal) {
    super(msg ?? code);
    this.code = code;
    this.retryMs = retry_ms ?? null;
    this.field = field ?? null;
    this.cid = cid ?? null;
  }
}

/** What an `err` frame says, checked. */
export function refusal({ code, msg, retry_ms, field, cid }: Frame): Refusal {
  const text = (value: unknown) => (typeof value === 'string' ? value : undefined);
  const ms = retryMs(retry_ms);
  return {
    code: text(code) ?? 'unknown',
    msg: text(msg),
    retry_ms: ms ?? undefined,
    field: text(field),
    cid: text(cid),
  };
}
