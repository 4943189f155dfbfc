/** What a client is made of, and what it tells: the types of its constructor and of its events. */

import type { Line, TokenProvider } from './dial.js';
import type { ChatError } from './errors.js';
import type { EngineEvent, ResetReason, Sent } from './events.js';
import type { Entry, Frame, Status } from './frames.js';
import type { Clock, SocketClass } from './link.js';
import type { Records, Store } from './store.js';

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

/** What a tab lets its siblings use: see `@chatd/client/tabs`. */
export interface TabsHost {
  /** The name of what the tabs share: server and user. */
  readonly scope: string;
  /** This tab has the connection from now on. */
  lead(): Promise<void>;
  /** Another one has it. `records`, `line`, `people`: what it knows. */
  follow(state: TabState): void;
  /** What the leader's engine emitted. */
  mirror(event: EngineEvent): void;
  /** What this tab knows, for one that follows. */
  state(): TabState;
  /** A follower's command, on this tab's engine. */
  run(tab: string, name: string, args: readonly unknown[]): unknown;
  /** This tab gives the connection up. */
  retire(): void;
  /** A follower is no more. */
  gone(tab: string): void;
}

export interface TabState {
  records: Records;
  line: Line;
  people: Status[];
}

/** One of several tabs. */
export interface TabsPort {
  /** Has the leader do it. Rejects with code `disconnected` if it goes away meanwhile. */
  ask(name: string, args: readonly unknown[]): Promise<unknown>;
  /** To all that follow this one. */
  broadcast(event: EngineEvent): void;
  freeze(isFrozen: boolean): void;
  close(): void;
}

export type Tabs = (host: TabsHost) => TabsPort;

export interface ChatClientOptions {
  /** `wss://host/ws`, or any URL that the WebSocket takes. */
  url: string;
  token: TokenProvider;
  /** Who uses it, if the application knows: the scope of store and tabs. Needed where users change. */
  user?: UserId;
  /** 1-64 characters of `A-Z a-z 0-9 . _ : -`, another one for each installation. Default: made, and stored. */
  device?: string;
  /** Where state outlives a reload. Default: nowhere. */
  store?: Store;
  /** `tabs()` of `@chatd/client/tabs`: one connection for all tabs. */
  tabs?: Tabs;
  /** `browser()` of `@chatd/client/browser`, or another. */
  platform?: Platform;
  /** A WebSocket class, where there is no global one. */
  webSocket?: SocketClass;
  /** For tests: time of durations, and [0, 1) for jitter. */
  clock?: Clock;
  random?: () => number;
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
