/**
 * This client among the tabs of one user: who has the connection, and what the others want of it.
 *
 *      leader    its engine has the connection; it tells the others every event
 *      follower  its engine only mirrors; every command goes to the leader's
 *
 * Invariant: what a follower says stands in its own outbox until the leader has told that it has it, and goes to each
 * new leader again. The cid makes that safe. Without `tabs` a client is a leader of nobody.
 */

import type { Engine } from './engine.js';
import type { EngineEvent } from './events.js';
import type { Entry, Frame } from './frames.js';
import type { Model } from './model.js';
import type { TabState, Tabs, TabsHost, TabsPort } from './options.js';
import type { Draft } from './outbox.js';
import { dump, epochOf, load, outboxOf } from './store.js';
import type { Gap } from './stream.js';

/** A channel between tabs is faster than that. */
const LATE_MS = 50;

interface Wish {
  watch: readonly string[];
  away: boolean;
}

export interface SiblingsParts {
  engine: Engine;
  model: Model;
  scope: string;
  /** Something happened, here or at the leader's. */
  apply(event: EngineEvent): void;
  lead(): Promise<void>;
  /** Another tab gets the connection. */
  retired(): void;
  forget(): Promise<void>;
  /** What came to the leader and not here. */
  gap(gap: Gap): void;
  role(role: 'leader' | 'follower'): void;
}

export class Siblings {
  isFollower = false;
  readonly #parts: SiblingsParts;
  #port: TabsPort | null = null;
  /** What each tab wants; this one's is ''. */
  readonly #wishes = new Map<string, Wish>([['', { watch: [], away: false }]]);
  /** What no leader has told yet that it has it. */
  readonly #unsure = new Map<string, Draft>();

  constructor(parts: SiblingsParts) {
    this.#parts = parts;
  }

  join(tabs: Tabs): void {
    this.isFollower = true; // until it leads
    this.#port = tabs(this.#host());
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
  async run(name: string, ...args: unknown[]): Promise<unknown> {
    return this.isFollower && this.#port ? this.#port.ask(name, args) : this.#command('', name, args);
  }

  /** The same where nobody waits for it. */
  tell(name: string, ...args: unknown[]): void {
    void this.run(name, ...args).catch(() => {});
  }

  /** This tab has it in its outbox. */
  added(draft: Draft): void {
    if (!this.isFollower) return;
    this.#unsure.set(draft.cid, draft);
    this.tell('add', draft);
  }

  wish(part: Partial<Wish>): void {
    const wish = { watch: [], away: false, ...this.#wishes.get(''), ...part };
    this.#wishes.set('', wish);
    if (this.isFollower) this.tell('wish', wish);
    else this.#tellWishes();
  }

  #tellWishes(): void {
    const wishes = [...this.#wishes.values()];
    const { teller } = this.#parts.engine;
    teller.watch([...new Set(wishes.flatMap(({ watch }) => watch))]);
    teller.away(wishes.every(({ away }) => away));
  }

  #command(tab: string, name: string, [a, b, c]: readonly unknown[]): unknown {
    const { engine } = this.#parts;
    const commands: Record<string, () => unknown> = {
      add: () => engine.sender.add(a as Draft) !== null,
      discard: () => engine.sender.discard(a as string),
      amend: () => engine.sender.amend(a as string, b as string),
      cursor: () => engine.teller.cursor(a as string, b as 'ack', c as number),
      ask: () => engine.ask(a as Frame),
      read: () => engine.read(a as Frame),
      wake: () => engine.dial.wake(),
      connect: () => engine.dial.connect(),
      refresh: () => engine.refresh(),
      forget: () => this.#parts.forget(),
      wish: () => {
        this.#wishes.set(tab, a as Wish);
        this.#tellWishes();
      },
    };
    return Object.hasOwn(commands, name) ? commands[name]?.() : undefined;
  }

  #host(): TabsHost {
    const { engine, model, scope } = this.#parts;
    return {
      scope,
      lead: async () => {
        // What the last leader said may still be on its way.
        if (engine.user !== '') await new Promise<void>((resolve) => engine.clock.set(resolve, LATE_MS));
        if (!this.isFollower) return;
        this.isFollower = false;
        this.#unsure.clear();
        this.#parts.role('leader');
        await this.#parts.lead();
        this.#tellWishes();
      },
      follow: (state) => this.#follow(state),
      mirror: (event) => this.#mirror(event),
      state: () => ({ records: dump(engine, model), line: model.line, people: [...model.people.values()] }),
      retire: () => {
        this.isFollower = true;
        engine.dial.close();
        this.#parts.retired();
      },
      run: (tab, name, args) => this.#command(tab, name, args),
      gone: (tab) => {
        this.#wishes.delete(tab);
        this.#tellWishes();
      },
    };
  }

  /** What this tab said and the leader does not have yet stays in sight. */
  #mirror(event: EngineEvent): void {
    if (event.t === 'done' || event.t === 'failed') this.#unsure.delete(event.cid);
    let told = event;
    if (event.t === 'entry' && event.how === 'live' && !this.#isNext(event.entry)) return;
    if (event.t === 'item') {
      // This tab may have got further than the leader had.
      const own = this.#parts.engine.places.of.get(event.item.c)?.seq;
      if (own !== undefined) told = { ...event, after: Math.max(own, event.after ?? 0) };
    } else if (event.t === 'outbox') {
      const { peer, items } = event;
      for (const { cid } of items) this.#unsure.delete(cid);
      const own = this.#parts.engine.outbox.of(peer).filter(({ cid }) => this.#unsure.has(cid));
      told = { t: 'outbox', peer, items: [...items, ...own] };
    }
    this.#parts.engine.mirror(told);
    this.#parts.apply(told);
  }

  /** A leader may have got less far than the one before it, or further. */
  #isNext({ c, seq, from, to }: Entry): boolean {
    const { engine, model, gap } = this.#parts;
    const after = engine.places.of.get(c)?.seq;
    if (after === undefined || seq === after + 1) return true;
    if (seq > after) gap({ c, peer: from === model.user ? to : from, after, head: seq - 1 });
    return seq > after;
  }

  #follow({ records, line, people }: TabState): void {
    const { engine, model, apply, gap } = this.#parts;
    const epoch = epochOf(records);
    if (engine.places.epoch !== null && epoch !== engine.places.epoch) this.#mirror({ t: 'reset', why: 'epoch' });
    if (!load(records, engine, model, gap)) return;
    const own = engine.outbox.all().filter(({ state }) => state !== 'failed');
    engine.outbox.restore(outboxOf(records));
    for (const peer of new Set(engine.outbox.all().map((item) => item.peer))) {
      apply({ t: 'outbox', peer, items: engine.outbox.of(peer) });
    }
    apply({ t: 'line', line });
    apply({ t: 'presence', list: people, isAll: true });
    // A leader before this one may have sent them.
    for (const item of own) this.added({ ...item, tried: true });
    this.tell('wish', this.#wishes.get(''));
    this.#parts.role('follower');
  }
}
