/**
 * What an application shows, made from the model: immutable snapshots, each with subscribers of its own, so that nothing
 * is drawn again for what it does not show.
 */

import type { ChatClient } from './client.js';
import type { Line } from './dial.js';
import type { Log, LogMessage } from './log.js';
import type { Chat, Model, Touched } from './model.js';
import { canRetry, type Outbox, type OutboxItem } from './outbox.js';
import { type Readable, same, Topic } from './topic.js';

/** How far a message has got: `received` is somebody else's. */
export type MessageState = 'sending' | 'sent' | 'delivered' | 'read' | 'failed' | 'received';

/** Something that waits in the outbox, or failed there. */
export interface Waiting {
  readonly cid: string;
  readonly peer: string;
  readonly kind: 'message' | 'edit' | 'delete';
  readonly body: string | null;
  readonly at: number;
  readonly state: 'sending' | 'failed';
  /** Why it waits or failed, if the server said so. */
  readonly code: string | null;
  /** It surely is not in the log: `cancel` works, and `amend` where it did not fail. */
  readonly canCancel: boolean;
  /** It failed, and `again` may succeed. Where it cannot, its words are all that is left of it. */
  readonly canRetry: boolean;
}

/** A message as it stands. */
export interface Message {
  /** The same as long as it is shown, from the outbox into the log: the key of a row. */
  readonly key: string;
  /** Null while it waits. */
  readonly seq: number | null;
  readonly cid: string | null;
  readonly ts: number;
  readonly from: string;
  /** Null where it was deleted. */
  readonly body: string | null;
  readonly edited: number | null;
  readonly deleted: number | null;
  readonly state: MessageState;
  /** What waits or failed: the message itself, or else the last change of it. */
  readonly waiting: Waiting | null;
}

/** The messages of one conversation, from the oldest that is held on. */
export interface MessagesView {
  readonly peer: string;
  readonly messages: readonly Message[];
  /** Older, newer ones can be loaded. */
  readonly hasOlder: boolean;
  readonly hasNewer: boolean;
  readonly isLoading: boolean;
  readonly unread: number;
  /** The own cursor, and up to where nobody saw entries come. */
  readonly read: number;
  readonly missedTo: number;
}

/** One row of the list of conversations. */
export interface ConversationView {
  readonly peer: string;
  /** Null before the first message is stored. */
  readonly c: string | null;
  readonly ts: number;
  readonly unread: number;
  /** Both have sent: presence, typing and receipts flow. */
  readonly open: boolean;
  /** The newest message, if it is held. */
  readonly last: Message | null;
  /** Nothing is held of it: `load(peer, 'preview')` fetches the newest messages. */
  readonly isBlank: boolean;
}

/** Null where it is not known: not online, not watched, or not to be seen. */
export interface PresenceView {
  readonly state: string;
  /** When the user was last here, if offline and known. */
  readonly seen: number | null;
}

/** The stores. Each call with the same argument gives the same store. */
export interface Stores {
  readonly line: Readable<Line>;
  /** The latest first. */
  readonly conversations: Readable<readonly ConversationView[]>;
  readonly outbox: Readable<readonly Waiting[]>;
  readonly messages: (peer: string) => Readable<MessagesView>;
  readonly presence: (user: string) => Readable<PresenceView | null>;
  readonly typing: (peer: string) => Readable<boolean>;
}

/** What the lines of a conversation were made of. */
interface Made {
  readonly lines: readonly Message[];
  readonly log: Log;
  readonly stored: readonly LogMessage[];
  readonly state: string;
}

type Topics = 'messages' | 'presence' | 'typing';

export class Views implements Stores {
  readonly line: Topic<Line>;
  readonly conversations: Topic<readonly ConversationView[]>;
  readonly outbox: Topic<readonly Waiting[]>;
  readonly #client: ChatClient;
  /** What was made of a message of the log last: thousands stay as they are while one comes. */
  readonly #known = new WeakMap<LogMessage, Message>();
  /** The lines of each conversation as they were made last, and of what. */
  readonly #shown = new Map<string, Made>();
  readonly #byPeer: Record<Topics, Map<string, Topic<unknown>>> = {
    messages: new Map(),
    presence: new Map(),
    typing: new Map(),
  };

  constructor(client: ChatClient) {
    this.#client = client;
    this.line = this.#made(() => this.#model.line);
    this.conversations = this.#made((old) => this.#list(old));
    this.outbox = this.#made<readonly Waiting[]>((old) => {
      const byCid = new Map(old?.map((one) => [one.cid, one]));
      const items = this.#outbox.all();
      return same(
        old,
        items.map((item) => this.#waiting(item, byCid.get(item.cid))),
      );
    });
  }

  get #model(): Model {
    return this.#client._model;
  }

  get #outbox(): Outbox {
    return this.#client._engine.outbox;
  }

  #made<T>(make: (old: T | undefined) => T): Topic<T> {
    return new Topic(make, (error) => this.#client._emitter.failed(error));
  }

  readonly messages = (peer: string): Topic<MessagesView> =>
    this.#topic('messages', peer, (old) => this.#messages(peer, old));

  readonly presence = (user: string): Topic<PresenceView | null> =>
    this.#topic('presence', user, (old) => {
      const { people, line } = this.#model;
      const status = people.get(user);
      if (!status || line.state !== 'online' || status.state === 'hidden') return null;
      return same(old ?? undefined, { state: status.state, seen: status.seen ?? null });
    });

  readonly typing = (peer: string): Topic<boolean> => this.#topic('typing', peer, () => this.#model.typing.has(peer));

  isWatched(peer: string): boolean {
    return this.#byPeer.messages.get(peer)?.isWatched ?? false;
  }

  touched(touched: Touched): void {
    if ('peer' in touched) this.#byPeer[touched.what].get(touched.peer)?.touch();
    else if (touched.what === 'list') this.conversations.touch();
    else this[touched.what].touch();
  }

  #topic<T>(what: Topics, peer: string, make: (old: T | undefined) => T): Topic<T> {
    const topics = this.#byPeer[what] as Map<string, Topic<T>>;
    const topic = topics.get(peer) ?? this.#made(make);
    topics.set(peer, topic);
    return topic;
  }

  /** The latest first; what waits in the outbox counts. */
  #list(old: readonly ConversationView[] | undefined): readonly ConversationView[] {
    const byPeer = new Map(old?.map((one) => [one.peer, one]));
    const rows = [...this.#model.chats.values()].map((chat) => {
      const had = byPeer.get(chat.peer);
      const last = this.#lines(chat, had?.last ? [had.last] : [], true)[0] ?? null;
      const { peer, c, unread, open, log } = chat;
      const ts = Math.max(chat.ts, last?.seq === null ? last.ts : 0);
      return same(had, { peer, c, ts, unread, open, last, isBlank: log.blank || log.isEndUnknown });
    });
    return same(
      old,
      rows.sort((a, b) => b.ts - a.ts || (a.peer < b.peer ? -1 : 1)),
    );
  }

  #messages(peer: string, old: MessagesView | undefined): MessagesView {
    const chat = this.#model.chats.get(peer);
    const messages = same(old?.messages, chat ? this.#lines(chat, old?.messages ?? [], false) : []);
    return same(old, {
      peer,
      messages,
      hasOlder: chat?.log.more ?? false,
      hasNewer: chat?.log.isBehind ?? false,
      isLoading: this.#client._loads.isLoading(peer),
      unread: chat?.unread ?? 0,
      read: chat?.read ?? 0,
      missedTo: chat?.missedTo ?? 0,
    });
  }

  /** Log and outbox together. `isLast`: the last message alone. */
  #lines(chat: Chat, old: readonly Message[], isLast: boolean): readonly Message[] {
    const { log, peer } = chat;
    const pending = this.#outbox.of(peer);
    const changes = pending.filter(({ kind }) => kind !== 'message');
    let byKey: Map<string, Message> | undefined; // made when it is needed: mostly all is known as it stands
    const of = (key: string) => {
      byKey ??= new Map(old.map((message) => [message.key, message]));
      return byKey.get(key);
    };
    const stored = isLast ? (log.last ? [log.last] : []) : log.messages();
    const state = `${log.version} ${chat.peer_delivered} ${chat.peer_read}`;
    const made = isLast || pending.length > 0 ? undefined : this.#shown.get(peer);
    if (made?.log === log && made.state === state) return made.lines; // what is another of the chat is no message
    const lines = made ? this.#kept(chat, stored, made) : [];
    for (let i = lines.length; i < stored.length; i += 1) {
      lines.push(this.#line(chat, stored[i] as LogMessage, changes, of));
    }
    if (pending.length > 0) this.#shown.delete(peer);
    else if (!isLast) this.#shown.set(peer, { lines, log, stored: stored.slice(), state });
    if (pending.length === 0) return lines;
    const cids = new Set<string | null>(stored.map(({ cid }) => cid));
    for (const item of pending) {
      if (item.kind !== 'message' || cids.has(item.cid)) continue;
      const { cid, at: ts, body } = item;
      const had = of(cid);
      const waiting = this.#waiting(item, had?.waiting);
      const line = { key: cid, seq: null, cid, ts, from: this.#model.user, body, edited: null, deleted: null };
      lines.push(same<Message>(had, { ...line, state: waiting.state, waiting }));
    }
    return isLast ? lines.slice(-1) : lines;
  }

  /** The lines at the start that stand as they were made: of thousands, mostly all but the last. */
  #kept(chat: Chat, stored: readonly LogMessage[], made: Made): Message[] {
    let kept = 0;
    const most = Math.min(made.stored.length, stored.length);
    while (kept < most && made.stored[kept] === stored[kept]) kept += 1;
    // Own messages may have got further since. What was read stays so, and with it all before it.
    for (let i = kept - 1; i >= 0; i -= 1) {
      const { seq, from } = stored[i] as LogMessage;
      if (from !== this.#model.user) continue;
      const { state } = made.lines[i] as Message;
      if (state !== this.#model.reach(chat.peer, seq)) kept = i;
      else if (state === 'read') break;
    }
    return made.lines.slice(0, kept);
  }

  #line(
    chat: Chat,
    message: LogMessage,
    changes: readonly OutboxItem[],
    of: (key: string) => Message | undefined,
  ): Message {
    const state = message.from === this.#model.user ? this.#model.reach(chat.peer, message.seq) : 'received';
    const known = this.#known.get(message);
    if (changes.length === 0 && known?.state === state && !known.waiting) return known;
    const { seq, cid, ts, from, body, edited, deleted } = message;
    const key = cid ?? String(seq);
    const had = of(key);
    const change = changes.findLast(({ ref, refcid }) => (ref === null ? refcid === cid : ref === seq));
    const waiting = change ? this.#waiting(change, had?.waiting) : null;
    const line = same<Message>(had, { key, seq, cid, ts, from, body, edited, deleted, state, waiting });
    this.#known.set(message, line);
    return line;
  }

  #waiting(item: OutboxItem, old: Waiting | null | undefined): Waiting {
    const { cid, peer, kind, body, at, state, code } = item;
    const canCancel = this.#outbox.canDiscard(item);
    return same<Waiting>(old ?? undefined, {
      cid,
      peer,
      kind,
      body,
      at,
      state: state === 'failed' ? state : 'sending',
      code,
      canCancel,
      canRetry: canRetry(item),
    });
  }
}
