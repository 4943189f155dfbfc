/** What outlives a reload, and what becomes of a client whose storage is of no use. */

import assert from 'node:assert/strict';
import { IDBFactory, IDBKeyRange } from 'fake-indexeddb';
import { test } from 'vitest';
import { ChatClient, type ChatClientOptions, type LiveEntry, type Persistence, type Store } from '../src/index.js';
import { indexedDb, indexedDbStore } from '../src/indexeddb.js';
import { persist } from '../src/store.js';
import { FakeChatd, type FakeSettings, TestClock } from '../src/testing/index.js';

/** IndexedDB works in tasks of its own, which no clock of a test moves. */
async function tasks(clock?: TestClock): Promise<void> {
  for (let i = 0; i < 30; i += 1) {
    await clock?.pass(10);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

class World {
  readonly clock = new TestClock();
  readonly chatd: FakeChatd;
  factory = new IDBFactory();
  /** localStorage. */
  readonly items = new Map<string, string>();
  readonly reasons: string[] = [];
  #life = { isOver: false };

  constructor(settings: Partial<FakeSettings> = {}) {
    this.chatd = new FakeChatd({ clock: this.clock, ...settings });
  }

  /** Nothing of the tabs so far runs any more. */
  kill(): void {
    this.#life.isOver = true;
    this.#life = { isOver: false };
  }

  get options() {
    const { items } = this;
    const localStorage = {
      getItem: (key: string) => items.get(key) ?? null,
      setItem: (key: string, value: string) => void items.set(key, value),
      removeItem: (key: string) => void items.delete(key),
    };
    return { indexedDB: this.factory, IDBKeyRange, localStorage };
  }

  store(): Persistence {
    return indexedDb(this.options);
  }

  /** One whose page ends before a transaction does. */
  hasty(): Persistence {
    return persist({ ...indexedDbStore(this.options), save: () => new Promise(() => {}) });
  }

  async tab(facts: Partial<ChatClientOptions> = {}): Promise<ChatClient> {
    const { chatd } = this;
    const life = this.#life;
    const clock = {
      now: () => this.clock.now(),
      set: (fn: () => void, ms: number) => this.clock.set(() => life.isOver || fn(), ms),
      clear: (handle: unknown) => this.clock.clear(handle),
    };
    const client = new ChatClient({
      url: chatd.url,
      token: async () => chatd.token('alice'),
      webSocket: chatd.WebSocket as unknown as NonNullable<ChatClientOptions['webSocket']>,
      store: this.store(),
      clock,
      ...facts,
    });
    client.on('store', ({ reason }) => this.reasons.push(reason));
    void client.start();
    await tasks(this.clock);
    return client;
  }
}

const bodies = (client: ChatClient): (string | null)[] =>
  client.stores
    .messages('bob')
    .getSnapshot()
    .messages.map(({ body }) => body);
const states = (client: ChatClient): string[] =>
  client.stores
    .messages('bob')
    .getSnapshot()
    .messages.map(({ state }) => state);

/** A conversation with three messages, one edited, and a tab that has them. */
async function begun(): Promise<{ world: World; client: ChatClient }> {
  const world = new World();
  const client = await world.tab();
  const { seq } = await whenDone(world, client.send('bob', 'one'));
  world.chatd.say('bob', 'alice', 'two', 'three');
  await whenDone(world, client.edit('bob', seq, 'one!'));
  await tasks(world.clock);
  assert.deepEqual([bodies(client), states(client)[1]], [['one!', 'two', 'three'], 'received']);
  return { world, client };
}

async function whenDone<T>(world: World, promise: PromiseLike<T>): Promise<T> {
  let isDone = false;
  void Promise.resolve(promise).finally(() => {
    isDone = true;
  });
  while (!isDone) await tasks(world.clock);
  return promise;
}

test('a reload shows what was there at once, offline too, and resyncs by its mark', async () => {
  const { world, client } = await begun();
  await client.stop();
  world.chatd.isDown = true;
  const again = await world.tab();
  assert.deepEqual(bodies(again), ['one!', 'two', 'three']);
  assert.equal(again.user, 'alice');
  const { read, unread, missedTo } = again.stores.messages('bob').getSnapshot();
  assert.deepEqual([read, unread, missedTo], [0, 2, 4], 'nobody saw these come here');
  const rows = again.stores.conversations.getSnapshot();
  assert.deepEqual(
    rows.map(({ peer, unread, last }) => [peer, unread, last?.body]),
    [['bob', 2, 'three']],
  );
  world.chatd.say('bob', 'alice', 'four');
  const asked: unknown[] = [];
  world.chatd.fault = (_, frame) => {
    if (frame.t === 'hello') asked.push([typeof frame.since, Object.values(frame.cursors as object)]);
    if (frame.t === 'history') asked.push('history');
    return undefined;
  };
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  await tasks(world.clock);
  assert.deepEqual(bodies(again), ['one!', 'two', 'three', 'four']);
  assert.deepEqual(asked, [['string', [4]]], 'nothing is fetched again');
  assert.deepEqual(world.reasons, []);
});

test('what waits outlives a kill, goes out once, and before what is typed since; what never left can be taken back', async () => {
  const { world, client } = await begun();
  world.chatd.isDown = true;
  world.chatd.cut();
  await tasks(world.clock);
  const kept = [client.send('bob', 'a').cid, client.send('bob', 'b').cid, client.send('bob', 'c').cid];
  await tasks(world.clock);
  world.kill();
  const again = new ChatClient({
    url: world.chatd.url,
    token: async () => world.chatd.token('alice'),
    webSocket: world.chatd.WebSocket as unknown as NonNullable<ChatClientOptions['webSocket']>,
    store: world.store(),
    clock: world.clock,
  });
  void again.send('bob', 'd');
  void again.start();
  await tasks(world.clock);
  assert.deepEqual(bodies(again).slice(3), ['a', 'b', 'c', 'd']);
  assert.equal(await again.waiting(kept[1] ?? '')?.cancel(), true);
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  await tasks(world.clock);
  assert.deepEqual(world.chatd.texts('alice', 'bob'), ['one!', 'two', 'three', 'a', 'c', 'd']);
  assert.deepEqual(again.stores.outbox.getSnapshot(), []);
});

test('a send whose answer was lost with the tab is not said twice, and cannot be taken back', async () => {
  const { world, client } = await begun();
  world.chatd.failNext('send', 'swallow after');
  const { cid } = client.send('bob', 'once');
  await tasks(world.clock);
  world.kill();
  world.chatd.isDown = true;
  const again = await world.tab();
  assert.equal(again.stores.outbox.getSnapshot()[0]?.canCancel, false);
  assert.equal(await again.cancel(cid), false);
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  await tasks(world.clock);
  assert.deepEqual(world.chatd.texts('alice', 'bob'), ['one!', 'two', 'three', 'once']);
  assert.deepEqual([bodies(again), again.stores.outbox.getSnapshot()], [['one!', 'two', 'three', 'once'], []]);
});

test('a scope that another client took: the first goes on in memory, says so, and overwrites nothing', async () => {
  const { world, client } = await begun();
  const other = await world.tab({ device: 'other' });
  world.chatd.say('bob', 'alice', 'four');
  await tasks(world.clock);
  assert.deepEqual(
    [world.reasons, bodies(client), bodies(other)],
    [['taken'], ['one!', 'two', 'three', 'four'], ['one!', 'two', 'three', 'four']],
  );
  await other.stop();
  world.chatd.isDown = true;
  assert.deepEqual(bodies(await world.tab()), ['one!', 'two', 'three', 'four']);
});

test('deleted while open: in memory from then on, and it says so', async () => {
  const { world, client } = await begun();
  world.factory.deleteDatabase('chatd');
  await tasks(world.clock);
  await whenDone(world, client.send('bob', 'on'));
  assert.deepEqual([world.reasons, bodies(client).at(-1)], [['deleted'], 'on']);
});

test('of a later version, denied, or none at all: in memory from the start', async () => {
  for (const reason of ['later_version', 'denied', 'none']) {
    const world = new World();
    if (reason === 'later_version') world.factory.open('chatd', 9);
    await tasks(world.clock);
    if (reason === 'denied') {
      world.factory.open = () => {
        throw new DOMException('no', 'SecurityError');
      };
    }
    const store = reason === 'none' ? indexedDb({ IDBKeyRange }) : world.store();
    const client = await world.tab({ store });
    await whenDone(world, client.send('bob', 'x'));
    assert.deepEqual(world.reasons, [reason]);
  }
});

/** The bodies of the next `count` entries. */
async function taken(world: World, entries: AsyncIterator<LiveEntry>, count: number): Promise<string[]> {
  const all: string[] = [];
  while (all.length < count) all.push((await whenDone(world, entries.next())).value.body);
  return all;
}

test('a reload in the middle of a gap goes on where the last page of it was left, and behind it', async () => {
  const world = new World({ resyncEntriesMax: 12 });
  const client = await world.tab();
  world.chatd.say('bob', 'alice', 'seen');
  await tasks(world.clock);
  const entries = client.entries();
  world.chatd.isDown = true;
  world.chatd.cut();
  await tasks(world.clock);
  const missed = Array.from({ length: 250 }, (_, n) => `missed ${n}`);
  world.chatd.say('bob', 'alice', ...missed);
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  await tasks(world.clock);
  assert.deepEqual(await taken(world, entries, 130), missed.slice(0, 130));
  await tasks(world.clock);
  world.kill();
  world.chatd.cut();
  const again = await world.tab();
  const rest = again.entries();
  assert.deepEqual(await taken(world, rest, 120), missed.slice(130));
  world.chatd.say('bob', 'alice', 'live');
  assert.deepEqual(await taken(world, rest, 1), ['live']);
  await tasks(world.clock);
  world.kill();
  world.chatd.cut();
  const last = await world.tab();
  const none = last.entries();
  world.chatd.say('bob', 'alice', 'more');
  assert.deepEqual(await taken(world, none, 1), ['more'], 'what was filled is not fetched again');
});

test('full: in memory from then on; a store that never answers is not waited for', async () => {
  const world = new World();
  const full: Store = {
    open: async () => new Map(),
    save: () => Promise.reject(new Error('quota')),
    close: () => {},
  };
  const client = await world.tab({ store: persist(full) });
  await whenDone(world, client.send('bob', 'x'));
  await tasks(world.clock);
  assert.deepEqual(world.reasons, ['quota']);
  const hung = await world.tab({ store: persist({ ...full, open: () => new Promise(() => {}) }), device: 'h' });
  await world.clock.pass(4000);
  await tasks(world.clock);
  assert.deepEqual([world.reasons.at(-1), hung.stores.line.getSnapshot().state], ['timeout', 'online']);
});

test('of another user: nothing of it is shown or sent, and it stays as it is', async () => {
  const { world, client } = await begun();
  world.chatd.isDown = true;
  world.chatd.cut();
  void client.send('bob', 'of alice');
  await tasks(world.clock);
  await client.stop();
  const other = await world.tab({ token: async () => world.chatd.token('mallory') });
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  await tasks(world.clock);
  assert.deepEqual([other.user, bodies(other), other.stores.outbox.getSnapshot()], ['mallory', [], []]);
  assert.deepEqual([world.reasons, world.chatd.texts('mallory', 'bob')], [['another_user'], []]);
  await other.stop();
  const back = await world.tab();
  await world.clock.pass(60000);
  await tasks(world.clock);
  assert.deepEqual(bodies(back), ['one!', 'two', 'three', 'of alice']);
});

test('forget: nothing stays, stored or shown', async () => {
  const { world, client } = await begun();
  await client.forget();
  await tasks(world.clock);
  assert.deepEqual([bodies(client), client.user], [[], '']);
  world.chatd.isDown = true;
  const again = await world.tab();
  assert.deepEqual([bodies(again), again.user, world.reasons], [[], '', []]);
});

test('records that were tampered with are passed over, and everything is listed again', async () => {
  const { world, client } = await begun();
  await client.stop();
  const inner = indexedDbStore(world.options);
  const tampered: Store = {
    ...inner,
    open: async (scope, lost) => {
      const records = await inner.open(scope, lost);
      records.set('c/bob', { item: { c: 7 }, log: 'x' });
      records.set('c/eve', null);
      records.set('o/bob', [{ peer: 'bob' }, 7, null]);
      records.set('o/eve', 'x');
      return records;
    },
  };
  const hellos: unknown[] = [];
  world.chatd.fault = (_, frame) => {
    if (frame.t === 'hello') hellos.push(frame.since);
    return undefined;
  };
  const again = await world.tab({ store: persist(tampered) });
  await tasks(world.clock);
  assert.deepEqual(hellos, [undefined]);
  assert.deepEqual(
    again.stores.conversations.getSnapshot().map(({ peer }) => peer),
    ['bob'],
  );
});

test('what the user says is stored in the turn in which it is said, and as tried where it left', async () => {
  const world = new World();
  const saved: { body: string; tried: boolean }[] = [];
  const store: Store = {
    open: async () => new Map(),
    save: async (records) => void saved.push(...((records.get('o/bob') ?? []) as typeof saved)),
    close() {},
  };
  const client = await world.tab({ store: persist(store) });
  void client.send('bob', 'online');
  await Promise.resolve();
  assert.deepEqual(
    saved.map(({ body, tried }) => [body, tried]),
    [['online', true]],
  );
  await world.clock.pass(1000);
  world.chatd.cut();
  await world.clock.pass(1);
  void client.send('bob', 'offline');
  await Promise.resolve();
  assert.deepEqual([saved.at(-1)?.body, saved.at(-1)?.tried], ['offline', false]);
});

/** Said and done in a tab that ends before anything of it is in IndexedDB. */
async function hurried(world: World, act: (client: ChatClient) => unknown): Promise<void> {
  const client = await world.tab({ store: world.hasty() });
  await act(client);
  await Promise.resolve();
  world.kill();
  world.chatd.cut();
}

test('a page that ends in the turn in which something is said, changed or taken back loses nothing of it', async () => {
  const { world, client } = await begun();
  await client.stop();
  world.chatd.isDown = true;
  const kept = await world.tab();
  const [a, b] = [kept.send('bob', 'a').cid, kept.send('bob', 'b').cid];
  await tasks(world.clock);
  await kept.stop();
  await hurried(world, (tab) => void tab.send('bob', 'c'));
  await hurried(world, (tab) => tab.amend(b, 'b!'));
  await hurried(world, (tab) => tab.cancel(a));
  world.chatd.isDown = false;
  const again = await world.tab();
  await world.clock.pass(60000);
  await tasks(world.clock);
  assert.deepEqual(world.chatd.texts('alice', 'bob'), ['one!', 'two', 'three', 'b!', 'c']);
  assert.deepEqual([again.stores.outbox.getSnapshot(), [...world.items]], [[], []]);
});

test('a page that ends as its message leaves says it once', async () => {
  for (const fault of ['swallow', 'swallow after'] as const) {
    const { world, client } = await begun();
    await client.stop();
    world.chatd.failNext('send', fault);
    await hurried(world, (tab) => void tab.send('bob', 'x'));
    await world.tab();
    await world.clock.pass(60000);
    await tasks(world.clock);
    assert.deepEqual(world.chatd.texts('alice', 'bob'), ['one!', 'two', 'three', 'x']);
    assert.deepEqual([...world.items], []);
  }
});

test('what an earlier client of the scope noted, or somebody else wrote there, is passed over', async () => {
  const { world, client } = await begun();
  await client.stop();
  world.chatd.isDown = true;
  await hurried(world, (tab) => void tab.send('bob', 'x'));
  const [[key, text]] = [...world.items] as [[string, string]];
  const store: Persistence = persist(indexedDbStore(world.options));
  assert.deepEqual(bodies(await world.tab({ store })).at(-1), 'x');
  assert.deepEqual([...world.items], []);
  for (const bad of [text, '[', '7', 'null', '["x"]', JSON.stringify([...JSON.parse(text).slice(0, 1), 7])]) {
    world.items.set(key, bad);
    const again = await world.tab();
    assert.deepEqual(bodies(again), ['one!', 'two', 'three', 'x'], bad);
  }
});

test('no room, or no leave, to note anything: it is stored all the same', async () => {
  const world = new World();
  const denied = (): never => {
    throw new DOMException('no', 'QuotaExceededError');
  };
  const localStorage = { getItem: denied, setItem: denied, removeItem: denied };
  const facts = { store: indexedDb({ ...world.options, localStorage }) };
  const client = await world.tab(facts);
  await whenDone(world, client.send('bob', 'x'));
  await tasks(world.clock);
  await client.stop();
  world.chatd.isDown = true;
  assert.deepEqual([bodies(await world.tab(facts)), world.reasons], [['x'], []]);
});

test('what is said while the store opens is stored with what waited there', async () => {
  const { world, client } = await begun();
  await client.stop();
  world.chatd.isDown = true;
  const kept = await world.tab();
  void kept.send('bob', 'a');
  await tasks(world.clock);
  await kept.stop();
  const { clock, chatd } = world;
  const options = { url: chatd.url, token: async () => chatd.token('alice'), store: world.store(), clock };
  const webSocket = chatd.WebSocket as unknown as NonNullable<ChatClientOptions['webSocket']>;
  const early = new ChatClient({ ...options, webSocket });
  early.on('store', ({ reason }) => world.reasons.push(reason));
  const started = early.start();
  void early.send('bob', 'b');
  await tasks(world.clock);
  await started;
  await early.stop();
  assert.deepEqual([bodies(await world.tab()).slice(3), world.reasons], [['a', 'b'], []]);
});
