/**
 * This client among the tabs of one user: who has the connection, and what the others want of it.
 *
 *      leader    its engine has the connection; it tells the others every event
 *      follower  its engine only mirrors; every command goes to the leader's
 *
 * Invariant: what a follower says stands in its own outbox until the leader has told that it has it, and goes to each
 * new leader again. The cid makes that safe. Without `tabs` a client is a leader of nobody.
 */

import type { ChatClient } from './client.js';
import type { Commands, Run, Wish } from './commands.js';
import { madeDevice } from './composer.js';
import type { Engine } from './engine.js';
import type { EngineEvent } from './events.js';
import type { Entry } from './frames.js';
import type { Draft } from './outbox.js';
import type { Together } from './parts.js';
import { dump, epochOf, load, restore } from './snapshot.js';
import type { TabState, TabsHost, TabsPort } from './tabs.js';

/** A channel between tabs is faster than that. */
const LATE_MS = 50;

type Whole = Required<Wish>;

export class Siblings implements Together, TabsHost {
  isFollower = false;
  readonly #client: ChatClient;
  readonly #connect: (host: TabsHost) => TabsPort;
  #port: TabsPort | null = null;
  /** What each tab wants; this one's is ''. */
  readonly #wishes = new Map<string, Whole>([['', { watch: [], away: false }]]);
  /** What no leader has told yet that it has it. */
  readonly #unsure = new Map<string, Draft>();

  constructor(client: ChatClient, connect: (host: TabsHost) => TabsPort) {
    this.#client = client;
    this.#connect = connect;
  }

  join(): void {
    this.isFollower = true; // until it leads
    this.#port = this.#connect(this);
  }

  leave(): void {
    this.isFollower = false;
    this.#port?.close();
    this.#port = null;
  }

  freeze(isFrozen: boolean): void {
    this.#port?.freeze(isFrozen);
  }

  /** To all that follow. */
  broadcast(event: EngineEvent): void {
    if (!this.isFollower) this.#port?.broadcast(event);
  }

  /** On this tab's engine, or on that of the tab that has the connection. */
  readonly run = (async (name: string, ...args: readonly unknown[]) =>
    this.isFollower && this.#port ? this.#port.ask(name, args) : this.command('', name, args)) as Run;

  /** The same where nobody waits for it. */
  #tell<K extends keyof Commands>(name: K, ...args: Parameters<Commands[K]>): void {
    void this.run(name, ...args).catch(() => {});
  }

  /** This tab has it in its outbox. */
  added(draft: Draft): void {
    if (!this.isFollower) return;
    this.#unsure.set(draft.cid, draft);
    this.#tell('add', draft);
  }

  wish(part: Wish): void {
    const wish = { watch: [], away: false, ...this.#wishes.get(''), ...part };
    this.#wishes.set('', wish);
    if (this.isFollower) this.#tell('wish', wish);
    else this.#tellWishes();
  }

  #tellWishes(): void {
    const wishes = [...this.#wishes.values()];
    this.#client._commands.wish({
      watch: [...new Set(wishes.flatMap(({ watch }) => watch))],
      away: wishes.every(({ away }) => away),
    });
  }

  // --- what the port asks of this tab -------------------------------------------------------------------------------

  get scope(): string {
    return this.#client._scope;
  }

  command(tab: string, name: string, args: readonly unknown[]): unknown {
    if (name === 'wish') {
      this.#wishes.set(tab, args[0] as Whole);
      return this.#tellWishes();
    }
    const commands = this.#client._commands as Record<string, (...args: readonly unknown[]) => unknown>;
    return Object.hasOwn(commands, name) ? commands[name]?.(...args) : undefined;
  }

  async lead(isAlone: boolean): Promise<void> {
    const { _engine: engine, _clock: clock, _emitter: emitter } = this.#client;
    // What the last leader said may still be on its way.
    if (engine.user !== '') await new Promise<void>((resolve) => clock.set(resolve, LATE_MS));
    if (!this.isFollower) return;
    this.isFollower = false;
    this.#unsure.clear();
    // Before the stored one is taken, because another tab may be connected as that, and would be replaced.
    if (isAlone) engine.device ||= madeDevice();
    emitter.emit('role', 'leader');
    await this.#client._lead();
    this.#tellWishes();
  }

  state(): TabState {
    const { line, people } = this.#client._model;
    return { records: dump(this.#client), line, people: [...people.values()] };
  }

  retire(): void {
    this.isFollower = true;
    this.#client._engine.dial.close();
    this.#client._retired();
  }

  gone(tab: string): void {
    this.#wishes.delete(tab);
    this.#tellWishes();
  }

  /** What this tab said and the leader does not have yet stays in sight. */
  mirror(event: EngineEvent): void {
    const { _engine: engine } = this.#client;
    if (event.t === 'done' || event.t === 'failed') this.#unsure.delete(event.cid);
    let told = event;
    if (event.t === 'entry' && event.how === 'live' && !this.#isNext(event.entry)) return;
    if (event.t === 'item') {
      // This tab may have got further than the leader had.
      const own = engine.places.of.get(event.item.c)?.seq;
      if (own !== undefined) told = { ...event, after: Math.max(own, event.after ?? 0) };
    } else if (event.t === 'outbox') {
      const { peer, items } = event;
      for (const { cid } of items) this.#unsure.delete(cid);
      const own = engine.outbox.of(peer).filter(({ cid }) => this.#unsure.has(cid));
      told = { t: 'outbox', peer, items: [...items, ...own] };
    }
    mirror(engine, told);
    this.#client._apply(told);
  }

  /** A leader may have got less far than the one before it, or further. */
  #isNext({ c, seq, from, to }: Entry): boolean {
    const { _engine: engine } = this.#client;
    const after = engine.places.of.get(c)?.seq;
    if (after === undefined || seq === after + 1) return true;
    if (seq > after) this.#client._gap({ c, peer: from === engine.user ? to : from, after, head: seq - 1 });
    return seq > after;
  }

  follow({ records, line, people }: TabState): void {
    const client = this.#client;
    const { _engine: engine } = client;
    const epoch = epochOf(records);
    if (engine.places.epoch !== null && epoch !== engine.places.epoch) this.mirror({ t: 'reset', why: 'epoch' });
    // What the leader has yet to fetch, it fetches for itself.
    if (!load(records, client, () => {})) return;
    const own = engine.outbox.all().filter(({ state }) => state !== 'failed');
    restore(engine.outbox, records);
    for (const peer of new Set(engine.outbox.all().map((item) => item.peer))) {
      client._apply({ t: 'outbox', peer, items: engine.outbox.of(peer) });
    }
    client._apply({ t: 'line', line });
    client._apply({ t: 'presence', list: people, isAll: true });
    // A leader before this one may have sent them.
    for (const item of own) this.added({ ...item, tried: true });
    this.#tell('wish', this.#wishes.get('') ?? {});
    client._emitter.emit('role', 'follower');
  }
}

/** What another tab's engine emitted: this one then knows what that one knows. */
export function mirror(engine: Engine, event: EngineEvent): void {
  const { places, outbox } = engine;
  const { cursors } = engine.teller;
  if (event.t === 'reset' && event.why !== 'epoch') engine.forget();
  else if (event.t === 'reset') {
    places.forget();
    cursors.forget();
  } else if (event.t === 'welcome') {
    engine.user = event.user;
    engine.limits = event.limits;
    engine.setTime(event.ts);
    places.epoch = event.epoch;
  } else if (event.t === 'item') {
    const { item, isKept, after } = event;
    places.put(item.c, { ...item, seq: isKept ? Math.max(after ?? 0, item.floor - 1) : item.head });
    cursors.listed(item, isKept);
  } else if (event.t === 'synced') places.since = event.since;
  else if (event.t === 'receipt' && event.from === engine.user) cursors.known(event.c, event);
  else if (event.t === 'entry' && event.how === 'live') {
    const { c, seq, ts, from, to } = event.entry;
    places.put(c, { peer: from === engine.user ? to : from, seq, head: seq, ts });
  } else if (event.t === 'outbox') {
    outbox.take([...outbox.all().filter(({ peer }) => peer !== event.peer), ...event.items]);
  }
}
