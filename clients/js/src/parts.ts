/**
 * The parts that a client may have beside its engine, as the core sees them, so that who does without one does not load
 * it: `ChatClient` brings what is held, the option `store` what stores, the option `tabs` what joins tabs.
 */

import type { Run, Wish } from './commands.js';
import type { EngineEvent } from './events.js';
import type { Draft } from './outbox.js';

/** The name of a message: its seq, its cid, or both. */
export interface Named {
  readonly seq: number | null;
  readonly cid: string | null;
}

/** What is held of the logs, for showing: `Model`. */
export interface Held {
  take(event: EngineEvent): void;
  /** The message that has this seq, or else this cid. */
  find(peer: string, named: Named): Named | undefined;
  /** How far an own message has got. */
  reach(peer: string, seq: number): 'sent' | 'delivered' | 'read';
}

/** What stores: `Keeper`. */
export interface Keeping {
  /** Takes what is stored. It takes a bounded time, and never fails. */
  open(): Promise<void>;
  keep(event: EngineEvent): void;
  touch(peer: string): void;
  /** Resolves when what was said so far is stored, or cannot be; null: there is nothing to wait for. */
  stored(): Promise<void> | null;
  flush(): Promise<void>;
  /** Nothing of these holds any more. */
  touchAll(peers: Iterable<string>): void;
  close(): void;
}

/** This client among those of other tabs: `Siblings`. */
export interface Together {
  /** Another tab has the connection. */
  readonly isFollower: boolean;
  join(): void;
  leave(): void;
  freeze(isFrozen: boolean): void;
  /** @internal */
  readonly run: Run;
  /** @internal This tab has it in its outbox. */
  added(draft: Draft): void;
  /** @internal */
  wish(part: Wish): void;
  /** It happened here. */
  broadcast(event: EngineEvent): void;
}
