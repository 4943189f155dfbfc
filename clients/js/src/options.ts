/** What a client is made of, and what it tells: the types of its constructor and of its events. */

import type { Line, TokenProvider } from './dial.js';
import type { ChatError } from './errors.js';
import type { ResetReason, Sent } from './events.js';
import type { Entry, Frame } from './frames.js';
import type { Clock, SocketClass } from './link.js';
import type { Persistence } from './store.js';
import type { Tabs } from './tabs.js';

/**
 * The names and data of an application. Augment it:
 * `declare module '@chatd/client' { interface Register { user: 'alice' | 'bob'; data: { color: string } } }`
 */
// biome-ignore lint/suspicious/noEmptyInterface: it is there to be augmented
export interface Register {}

/** The user ids of the application: `string` unless `Register` says otherwise. */
export type UserId = Register extends { user: infer U extends string } ? U : string;
/** The custom data of the application, for the features that carry it: `unknown` unless `Register` says otherwise. */
export type CustomData = Register extends { data: infer D } ? D : unknown;

/** What a platform tells a client. Each call may come at any time, and twice. */
export interface PlatformHooks {
  /** The device woke up, or the network changed: find out now whether the line is alive. */
  wake(): void;
  /** Nobody looks. */
  away(isAway: boolean): void;
  /** The page may end without a word: what is to be stored is stored now. */
  save(): void;
  /** The page is about to be frozen, or runs again: a frozen one must not hold the connection of all tabs. */
  freeze(isFrozen: boolean): void;
}

/** Listens to the platform from then on; gives what ends it. */
export type Platform = (hooks: PlatformHooks) => () => void;

/** What a client needs, whatever else it has. */
export interface CoreOptions {
  /** `wss://host/ws`, or any URL that the WebSocket takes. */
  url: string;
  token: TokenProvider;
  /** Who uses it, if the application knows: the scope of store and tabs. Needed where users change. */
  user?: UserId;
  /** 1-64 characters of `A-Z a-z 0-9 . _ : -`, another one for each installation. Default: made, and stored. */
  device?: string;
  /** `browser()` of `@chatd/client/browser`, or another. */
  platform?: Platform;
  /** A WebSocket class, where there is no global one. */
  webSocket?: SocketClass;
  /** For tests: time of durations, and [0, 1) for jitter. */
  clock?: Clock;
  random?: () => number;
}

export interface ChatClientOptions extends CoreOptions {
  /** Where state outlives a reload: `indexedDb()`, or `persist(store)` of `@chatd/client/store`. Default: nowhere. */
  store?: Persistence;
  /** `tabs()` of `@chatd/client/tabs`: one connection for all tabs. */
  tabs?: Tabs;
}

/** An entry of the log as it came: in order, once. */
export interface LiveEntry extends Entry {
  peer: UserId;
  epoch: string;
}

export interface ChatEvents {
  /** The line is in another state. */
  line: Line;
  /** Everything that was missed is on its way, and the outbox goes out. */
  synced: { user: UserId };
  /** Each entry of each conversation, one's own too, in order. */
  entry: LiveEntry;
  /** A message of somebody else that is unread: for notifications. */
  message: LiveEntry;
  /** Cursors moved: `from` has got everything up to `delivered`, and seen it up to `read`. */
  receipt: { peer: UserId; from: UserId; delivered: number; read: number };
  presence: { user: UserId; state: string; seen: number | null };
  typing: { peer: UserId };
  /** A send, edit or delete is in the log; or it failed, and stays in the outbox until it is discarded. */
  sent: Sent & { cid: string; peer: UserId };
  failed: { cid: string; peer: UserId; error: ChatError };
  /** Another epoch: a failover or a restore. `c` and `seq` of the old log that the application keeps are void. */
  reset: { reason: ResetReason };
  /** Too much of a conversation was missed: it goes on behind `head`, and `history` has what lies between. */
  gap: { peer: UserId; c: string; after: number; head: number };
  /** The store is of no use: quota, denied, deleted, taken by another client, of a later version or another user. */
  store: { state: 'memory'; reason: string };
  /** This tab has the connection, or follows one that has. */
  role: 'leader' | 'follower';
  /** Something from the wire that could not be understood, and was passed over. */
  malformed: Frame;
  /** What a listener threw. */
  error: unknown;
}
