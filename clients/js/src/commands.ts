/**
 * What is asked of the engine that has the connection: by its own client, or by one in another tab. All are idempotent,
 * so what one did not answer is asked of the next.
 */

import type { Engine } from './engine.js';
import type { Frame } from './frames.js';
import type { Draft } from './outbox.js';
import type { Watcher } from './watcher.js';

/** What somebody wants to be told to the server: whose presence to get, and whether nobody looks. */
export interface Wish {
  watch?: readonly string[];
  away?: boolean;
}

/** Those of every client. */
export function commandsOf(engine: Engine) {
  const { sender, teller, dial } = engine;
  return {
    add: (draft: Draft) => sender.add(draft) !== null,
    discard: (cid: string) => sender.discard(cid),
    cursor: (peer: string, what: 'ack' | 'read', seq: number) => teller.cursor(peer, what, seq),
    ask: (frame: Frame) => engine.ask(frame),
    read: (frame: Frame) => engine.read(frame),
    wake: () => dial.wake(),
    connect: () => dial.connect(),
    refresh: () => engine.refresh(),
  };
}

/** Those of a client that shows. */
export function moreCommandsOf({ sender }: Engine, watcher: Watcher, forget: () => Promise<void>) {
  return {
    amend: (cid: string, body: string) => sender.amend(cid, body),
    wish({ watch, away }: Wish) {
      if (watch) watcher.watch(watch);
      if (away !== undefined) watcher.away(away);
    },
    forget,
  };
}

export type Commands = ReturnType<typeof commandsOf> & ReturnType<typeof moreCommandsOf>;
/** Does one of them, here or elsewhere. */
export type Run = <K extends keyof Commands>(
  name: K,
  ...args: Parameters<Commands[K]>
) => Promise<Awaited<ReturnType<Commands[K]>>>;
