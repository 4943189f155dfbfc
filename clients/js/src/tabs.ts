/**
 * One connection for all tabs of a browser profile and user: they are one device.
 *
 *      Web Lock `chatd <scope>`   who holds it leads; when that tab dies, the browser gives it to the next at once
 *      BroadcastChannel           leader ──state, event──► all      follower ──join, ask──► leader ──answer──► follower
 *      Web Lock of each tab       tells the leader that a follower died
 *
 * Commands are idempotent (a send has its cid), so what one leader did not answer is asked of the next. Nothing of an
 * earlier leader counts once another one has told its state.
 */

import type { ChatClient } from './client.js';
import type { Line } from './dial.js';
import { ChatError, type Refusal } from './errors.js';
import type { EngineEvent } from './events.js';
import type { Status } from './frames.js';
import type { Together } from './parts.js';
import { Siblings } from './siblings.js';
import type { Records } from './store.js';

/** The part of a BroadcastChannel that is used. */
export interface Channel {
  onmessage: ((event: { data: unknown }) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

/** The part of `navigator.locks` that is used. */
export interface Locks {
  request(name: string, options: { signal: AbortSignal }, held: () => Promise<void>): Promise<unknown>;
}

/** What a tab lets its siblings use. */
export interface TabsHost {
  /** The name of what the tabs share: server and user. */
  readonly scope: string;
  /** This tab has a connection from now on. `isAlone`: others may have one as well, so it is a device of its own. */
  lead(isAlone: boolean): Promise<void>;
  /** Another one has it. `records`, `line`, `people`: what it knows. */
  follow(state: TabState): void;
  /** What the leader's engine emitted. */
  mirror(event: EngineEvent): void;
  /** What this tab knows, for one that follows. */
  state(): TabState;
  /** A follower's command, on this tab's engine. */
  command(tab: string, name: string, args: readonly unknown[]): unknown;
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

/** Makes a client one of several. */
export type Tabs = (client: ChatClient) => Together;

export interface TabsOptions {
  locks?: Locks;
  channel?: (name: string) => Channel;
}

type Message = { from: string } & (
  | { k: 'join' }
  | { k: 'state'; to: string | null; state: TabState }
  | { k: 'event'; event: EngineEvent }
  | { k: 'ask'; to: string; id: number; name: string; args: readonly unknown[] }
  | { k: 'answer'; to: string; id: number; value?: unknown; error?: Refusal }
);
type Said<M = Message> = M extends { from: string } ? Omit<M, 'from'> : never;

interface Asked {
  name: string;
  args: readonly unknown[];
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

/** Makes a client one of several tabs. Where the browser has no locks or channels, each tab is a device of its own. */
export function tabs({ locks, channel }: TabsOptions = {}): Tabs {
  const connect = (host: TabsHost): TabsPort => {
    const all = locks ?? (globalThis.navigator as { locks?: Locks } | undefined)?.locks;
    const makes = channel ?? ((name: string): Channel => new BroadcastChannel(name) as unknown as Channel);
    if (all && (channel || 'BroadcastChannel' in globalThis)) return new Tab(host, all, makes);
    void host.lead(true);
    return { ask: async (name, args) => host.command('', name, args), broadcast() {}, freeze() {}, close() {} };
  };
  return (client) => new Siblings(client, connect);
}

class Tab implements TabsPort {
  readonly #host: TabsHost;
  readonly #locks: Locks;
  readonly #bus: Channel;
  readonly #name: string;
  readonly #me = crypto.getRandomValues(new Uint32Array(3)).join('-');
  readonly #ended = new AbortController();
  readonly #known = new Set<string>();
  readonly #asked = new Map<number, Asked>();
  #lastId = 0;
  /** Whose word counts; null: nobody has told yet. */
  #leader: string | null = null;
  /** Gives the lead up. */
  #release: (() => void) | null = null;
  #isQueued = false;
  #isFrozen = false;

  constructor(host: TabsHost, locks: Locks, channel: (name: string) => Channel) {
    this.#host = host;
    this.#locks = locks;
    this.#name = `chatd ${host.scope}`;
    this.#bus = channel(this.#name);
    this.#bus.onmessage = ({ data }) => this.#heard(data as Message);
    this.#hold(`${this.#name} ${this.#me}`, () => new Promise(() => {}));
    this.#say({ k: 'join' });
    this.#queue();
  }

  ask(name: string, args: readonly unknown[]): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#lastId += 1;
      this.#asked.set(this.#lastId, { name, args, resolve, reject });
      this.#post(this.#lastId);
    });
  }

  broadcast(event: EngineEvent): void {
    if (this.#leader === this.#me) this.#say({ k: 'event', event });
  }

  /** A frozen tab would hold the connection of all without hearing a word. */
  freeze(isFrozen: boolean): void {
    this.#isFrozen = isFrozen;
    if (isFrozen && this.#release) {
      this.#host.retire();
      this.#leader = null;
      this.#release();
      this.#release = null;
    } else if (!isFrozen && this.#leader !== this.#me) {
      this.#say({ k: 'join' });
      this.#queue();
    }
  }

  close(): void {
    this.#ended.abort();
    this.#release?.();
    this.#release = null;
    this.#leader = null;
    this.#bus.close();
    for (const { reject } of this.#asked.values()) reject(new ChatError({ code: 'stopped' }));
    this.#asked.clear();
  }

  #say(said: Said): void {
    if (!this.#ended.signal.aborted) this.#bus.postMessage({ ...said, from: this.#me });
  }

  /** `denied` is called where the browser gives no lock: in a sandboxed frame. */
  #hold(name: string, held: () => Promise<void>, denied: () => void = () => {}): void {
    this.#locks.request(name, { signal: this.#ended.signal }, held).catch(denied);
  }

  /** Waits for the lead, once. */
  #queue(): void {
    if (this.#isQueued) return;
    this.#isQueued = true;
    const held = (isAlone: boolean): Promise<void> => {
      this.#isQueued = false;
      if (this.#isFrozen || this.#ended.signal.aborted) return Promise.resolve();
      return new Promise((release) => {
        this.#release = release;
        void this.#lead(isAlone);
      });
    };
    const inTurn = () => held(false);
    this.#hold(this.#name, inTurn, () => void held(true)); // as where there are no locks
  }

  async #lead(isAlone: boolean): Promise<void> {
    await this.#host.lead(isAlone);
    if (!this.#release) return;
    this.#leader = this.#me;
    this.#say({ k: 'state', to: null, state: this.#host.state() });
    for (const id of [...this.#asked.keys()]) this.#post(id);
  }

  /** To the leader; where there is none, to the next. */
  #post(id: number): void {
    const asked = this.#asked.get(id);
    if (!asked || this.#leader === null) return;
    const { name, args, resolve, reject } = asked;
    if (this.#leader !== this.#me) this.#say({ k: 'ask', to: this.#leader, id, name, args });
    else {
      this.#asked.delete(id);
      this.#do('', name, args).then(resolve, reject);
    }
  }

  async #do(tab: string, name: string, args: readonly unknown[]): Promise<unknown> {
    return this.#host.command(tab, name, args);
  }

  #heard(message: Message): void {
    const { from, k } = message;
    if (this.#leader === this.#me) {
      if (k === 'join') this.#say({ k: 'state', to: from, state: this.#host.state() });
      if (k === 'join' || (k === 'ask' && message.to === this.#me)) this.#meet(from);
      if (k === 'ask' && message.to === this.#me) this.#answer(message);
    } else if (k === 'state' && (message.to ?? this.#me) === this.#me && !this.#release) {
      this.#leader = from;
      this.#host.follow(message.state);
      for (const id of [...this.#asked.keys()]) this.#post(id);
    } else if (k === 'event' && from === this.#leader) this.#host.mirror(message.event);
    else if (k === 'answer' && message.to === this.#me) {
      const { id, value, error } = message;
      const asked = this.#asked.get(id);
      this.#asked.delete(id);
      if (error) asked?.reject(new ChatError(error));
      else asked?.resolve(value);
    }
  }

  /** Its lock is free once it is gone. */
  #meet(tab: string): void {
    if (this.#known.has(tab)) return;
    this.#known.add(tab);
    this.#hold(`${this.#name} ${tab}`, async () => {
      this.#known.delete(tab);
      this.#host.gone(tab);
    });
  }

  #answer({ from: to, id, name, args }: Message & { k: 'ask' }): void {
    this.#do(to, name, args).then(
      (value) => this.#say({ k: 'answer', to, id, value }),
      (error: ChatError) => {
        const { code = 'internal', message: msg, retryMs, field, cid } = error;
        const refusal = { code, msg, retry_ms: retryMs ?? undefined, field: field ?? undefined, cid: cid ?? undefined };
        this.#say({ k: 'answer', to, id, error: refusal });
      },
    );
  }
}
