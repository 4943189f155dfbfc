/**
 * What is asked of the engine that has the connection: by its own client, or by one in another tab. All are idempotent,
 * so what one did not answer is asked of the next.
 */

import type { Engine } from './engine.js';
import type { Frame } from './frames.js';
import type { Draft } from './outbox.js';

/** What somebody wants to be told to the server: whose presence to get, and whether nobody looks. */
export interface Wish {
  watch?: readonly string[];
  away?: boolean;
}

/** `forget` is the client's: it concerns more than its engine. */
export function commandsOf(engine: Engine, forget: () => Promise<void>) {
  const { sender, teller, dial } = engine;
  return {
    add: (draft: Draft) => sender.add(draft) !== null,
    discard: (cid: string) => sender.discard(cid),
    amend: (cid: string, body: string) => sender.amend(cid, body),
    cursor: (peer: string, what: 'ack' | 'read', seq: number) => teller.cursor(peer, what, seq),
    ask: (frame: Frame) => engine.ask(frame),
    read: (frame: Frame) => engine.read(frame),
    wake: () => dial.wake(),
    connect: () => dial.connect(),
    refresh: () => engine.refresh(),
    forget,
    wish({ watch, away }: Wish) {
      if (watch) teller.watch(watch);
      if (away !== undefined) teller.away(away);
    },
  };
}

export type Commands = ReturnType<typeof commandsOf>;
/** Does one of them, here or elsewhere. */
export type Run = <K extends keyof Commands>(
  name: K,
  ...args: Parameters<Commands[K]>
) => Promise<Awaited<ReturnType<Commands[K]>>>;
