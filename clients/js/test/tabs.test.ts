/** Several tabs, one connection: locks and channels in memory, against a chatd in memory. */

import assert from 'node:assert/strict';
import { test } from 'vitest';
import { ChatClient, type ChatClientOptions, type LiveEntry, type Store } from '../src/index.js';
import type { Socket } from '../src/link.js';
import { persist } from '../src/store.js';
import { type Channel, type Locks, tabs } from '../src/tabs.js';
import { FakeChatd, TestClock } from '../src/testing/index.js';
import { type Dice, seeds, withSeed } from './dice.js';

interface Waiting {
  tab: FakeTab;
  held: () => Promise<void>;
}

/** What the tabs of a browser share. A tab that dies takes its locks, channels and sockets with it. */
class FakeBrowser {
  readonly queues = new Map<string, Waiting[]>();
  readonly channels = new Map<string, Set<FakeChannel>>();

  grant(name: string): void {
    const first = this.queues.get(name)?.[0];
    if (!first) return;
    const free = (): void => this.drop(name, first);
    void Promise.resolve()
      .then(() => (first.tab.isDead ? undefined : first.held()))
      .then(free, free);
  }

  drop(name: string, waiting: Waiting): void {
    const queue = this.queues.get(name) ?? [];
    const at = queue.indexOf(waiting);
    if (at < 0) return;
    queue.splice(at, 1);
    if (at === 0) this.grant(name);
  }
}

class FakeChannel implements Channel {
  onmessage: ((event: { data: unknown }) => void) | null = null;
  readonly tab: FakeTab;
  readonly all: Set<FakeChannel>;
  readonly #until = new Map<FakeChannel, number>();

  constructor(tab: FakeTab, all: Set<FakeChannel>) {
    this.tab = tab;
    this.all = all.add(this);
  }

  postMessage(message: unknown): void {
    if (this.tab.isDead) return;
    const { latency, clock } = this.tab.world;
    for (const other of this.all) {
      if (other === this) continue;
      const data: unknown = structuredClone(message);
      // First in, first out for each pair; what was posted arrives, whatever becomes of who posted it.
      const at = Math.max(this.#until.get(other) ?? 0, clock.now() + latency() + other.tab.lagMs);
      this.#until.set(other, at);
      clock.set(() => other.tab.isDead || other.onmessage?.({ data }), at - clock.now());
    }
  }

  close(): void {
    this.all.delete(this);
  }
}

class FakeTab {
  readonly world: World;
  readonly browser: FakeBrowser;
  readonly sockets: Socket[] = [];
  readonly #ended: (() => void)[] = [];
  /** What others say reaches it so much later. */
  lagMs = 0;
  isDead = false;

  constructor(world: World) {
    this.world = world;
    this.browser = world.browser;
  }

  readonly locks: Locks = {
    request: (name, { signal }, held) => {
      const { queues } = this.browser;
      const queue = queues.get(name) ?? [];
      queues.set(name, queue);
      const waiting: Waiting = { tab: this, held };
      queue.push(waiting);
      if (queue.length === 1) this.browser.grant(name);
      return new Promise((_, reject) => {
        this.#whenEnded(signal, () => {
          if (queue.indexOf(waiting) > 0) this.browser.drop(name, waiting);
          reject(new Error('AbortError'));
        });
      });
    },
  };

  /** A leader asks for the lock of each tab, with one signal: that has one listener, however many they are. */
  #whenEnded(signal: AbortSignal, ended: () => void): void {
    const endAll = (): void => {
      for (const end of this.#ended.splice(0)) end();
    };
    if (this.#ended.length === 0) signal.addEventListener('abort', endAll);
    this.#ended.push(ended);
  }

  channel = (name: string): Channel => {
    const { channels } = this.browser;
    const all = channels.get(name) ?? new Set<FakeChannel>();
    channels.set(name, all);
    return new FakeChannel(this, all);
  };

  /** kill -9: nothing of it runs any more. */
  die(): void {
    this.isDead = true;
    for (const socket of this.sockets) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(1000);
    }
    for (const all of this.browser.channels.values()) for (const one of all) if (one.tab === this) all.delete(one);
    for (const [name, queue] of this.browser.queues) {
      for (const waiting of [...queue]) if (waiting.tab === this) this.browser.drop(name, waiting);
    }
  }
}

class World {
  readonly clock = new TestClock();
  readonly chatd: FakeChatd;
  readonly browser = new FakeBrowser();
  readonly clients: ChatClient[] = [];

  readonly latency: () => number;

  constructor(latency: () => number = () => 0) {
    this.latency = latency;
    this.chatd = new FakeChatd({ clock: this.clock, latency });
  }

  async open(facts: Partial<ChatClientOptions> = {}) {
    const tab = new FakeTab(this);
    const { chatd, clock } = this;
    // A tab that died runs no timers.
    const own = {
      now: () => clock.now(),
      set: (fn: () => void, ms: number) => clock.set(() => tab.isDead || fn(), ms),
      clear: (handle: unknown) => clock.clear(handle),
    };
    class Remembered extends (chatd.WebSocket as unknown as new (url: string, protocol: string) => Socket) {
      constructor(url: string, protocol: string) {
        super(url, protocol);
        tab.sockets.push(this);
      }
    }
    const client = new ChatClient({
      url: chatd.url,
      token: async () => chatd.token('alice'),
      webSocket: Remembered as unknown as NonNullable<ChatClientOptions['webSocket']>,
      tabs: tabs({ locks: tab.locks, channel: tab.channel }),
      clock: own,
      ...facts,
    });
    const entries: LiveEntry[] = [];
    void (async () => {
      for await (const entry of client.entries()) entries.push(entry);
    })();
    let role = '';
    client.on('role', (now) => {
      role = now;
    });
    await client.start();
    this.clients.push(client);
    await this.clock.pass(1000);
    return { tab, client, entries, role: () => role };
  }
}

type Open = Awaited<ReturnType<World['open']>>;

const bodies = ({ client }: Open): (string | null)[] =>
  client.stores
    .messages('bob')
    .getSnapshot()
    .messages.map(({ body }) => body);

test('eleven tabs are one device on one connection, and all show the same', async () => {
  const world = new World();
  const all: Open[] = [];
  for (let i = 0; i < 11; i += 1) all.push(await world.open());
  assert.equal(world.chatd.sessionsOf('alice').length, 1);
  assert.deepEqual(all.map(({ role }) => role()).filter((role) => role === 'leader').length, 1);
  const sending = all[7]?.client.send('bob', 'from seven');
  await world.clock.pass(1000);
  assert.deepEqual((await sending)?.seq, 1);
  world.chatd.say('bob', 'alice', 'hello');
  await world.clock.pass(1000);
  for (const one of all) {
    assert.deepEqual(bodies(one), ['from seven', 'hello']);
    assert.deepEqual(
      one.entries.map(({ seq }) => seq),
      [1, 2],
    );
    assert.deepEqual([one.client.stores.line.getSnapshot().state, one.client.user], ['online', 'alice']);
    assert.deepEqual(one.client.stores.outbox.getSnapshot(), []);
  }
});

test('a leader that dies hands over within a second: nothing is lost or doubled', async () => {
  const world = new World(() => 5);
  const [a, b, c] = [await world.open(), await world.open(), await world.open()];
  for (const one of [a, b, c]) void one.client.send('bob', 'x');
  await world.clock.pass(1000);
  world.chatd.say('bob', 'alice', 'first');
  await world.clock.pass(100);
  void b.client.send('bob', 'under way');
  a.tab.die();
  void c.client.send('bob', 'without a leader');
  world.chatd.say('bob', 'alice', 'missed');
  await world.clock.pass(1000);
  assert.deepEqual([b.role(), b.client.stores.line.getSnapshot().state], ['leader', 'online']);
  const truth = world.chatd.texts('alice', 'bob');
  assert.deepEqual(truth.filter((text) => text !== 'x').sort(), ['first', 'missed', 'under way', 'without a leader']);
  for (const one of [b, c]) {
    assert.deepEqual(bodies(one), truth);
    assert.deepEqual(
      one.entries.map(({ seq }) => seq),
      truth.map((_, i) => i + 1),
    );
    assert.deepEqual(one.client.stores.outbox.getSnapshot(), []);
  }
  assert.equal(world.chatd.sessionsOf('alice').length, 1);
});

test('a tab that comes later knows at once what the leader knows; one that is closed is no more', async () => {
  const world = new World();
  const a = await world.open();
  world.chatd.say('bob', 'alice', 'one', 'two');
  await world.clock.pass(1000);
  world.chatd.isDown = true;
  world.chatd.cut();
  await world.clock.pass(100);
  const b = await world.open();
  assert.deepEqual(bodies(b), ['one', 'two']);
  assert.equal(b.client.stores.line.getSnapshot().state, 'offline');
  await a.client.stop();
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  assert.deepEqual([b.role(), b.client.stores.line.getSnapshot().state], ['leader', 'online']);
});

test('commands of a follower: history, cursors, cancel of what waits, refusals with all that they say', async () => {
  const world = new World();
  const [a, b] = [await world.open(), await world.open()];
  world.chatd.say('bob', 'alice', 'one', 'two');
  await world.clock.pass(1000);
  const page = Promise.resolve(b.client.history('bob', { limit: 1 }));
  await world.clock.pass(100);
  assert.deepEqual(
    (await page).entries.map(({ body }) => body),
    ['two'],
  );
  const refused = Promise.resolve(b.client.history('nobody', { limit: 1 })).catch((error: unknown) => error);
  await world.clock.pass(100);
  assert.equal(((await refused) as { code: string }).code, 'no_conversation');
  b.client.read('bob');
  await world.clock.pass(1000);
  assert.deepEqual(
    [a, b].map(({ client }) => client.stores.conversations.getSnapshot()[0]?.unread),
    [0, 0],
  );
  world.chatd.isDown = true;
  world.chatd.cut();
  await world.clock.pass(1000);
  const sending = b.client.send('bob', 'not yet');
  await world.clock.pass(100);
  assert.equal(a.client.stores.outbox.getSnapshot().length, 1);
  const gone = sending.cancel();
  await world.clock.pass(100);
  assert.equal(await gone, true);
  await assert.rejects(sending, { code: 'cancelled' });
  assert.deepEqual(
    [a, b].map(({ client }) => client.stores.outbox.getSnapshot().length),
    [0, 0],
  );
});

test('watch lists are one, and somebody is away where all tabs are; a dead tab wants nothing any more', async () => {
  const world = new World();
  const [a, b] = [await world.open(), await world.open()];
  const told: unknown[] = [];
  world.chatd.fault = (_, frame) => {
    if (frame.t === 'watch') told.push(frame.users);
    if (frame.t === 'presence') told.push(frame.state);
    return undefined;
  };
  a.client.watch(['bob']);
  b.client.watch(['carol', 'bob']);
  await world.clock.pass(100);
  a.client.away(true);
  await world.clock.pass(100);
  assert.deepEqual(told, [['bob'], ['bob', 'carol']]);
  b.client.away(true);
  await world.clock.pass(100);
  assert.deepEqual(told.slice(2), ['away']);
  b.tab.die();
  await world.clock.pass(100);
  assert.deepEqual(told.slice(3), [['bob']]);
});

test('a leader that freezes gives the connection to another, and follows when it runs again', async () => {
  const world = new World();
  let freeze = (_: boolean): void => {};
  const a = await world.open({
    platform: (hooks) => {
      freeze = (is) => hooks.freeze(is);
      return () => {};
    },
  });
  const b = await world.open();
  world.chatd.say('bob', 'alice', 'before');
  await world.clock.pass(100);
  freeze(true);
  world.chatd.say('bob', 'alice', 'while frozen');
  await world.clock.pass(1000);
  assert.deepEqual(
    [b.role(), world.chatd.sessionsOf('alice').length, bodies(b)],
    ['leader', 1, ['before', 'while frozen']],
  );
  freeze(false);
  await world.clock.pass(1000);
  assert.deepEqual([a.role(), bodies(a)], ['follower', ['before', 'while frozen']]);
});

test('without locks each tab is a device of its own, also where they share a store; the server bounds them', async () => {
  const world = new World();
  const facts = { user: 'alice', tabs: tabs(), store: shared() };
  const one = await world.open(facts);
  const all = [one];
  while (all.length < world.chatd.settings.devicesMax) all.push(await world.open(facts));
  void one.client.send('bob', 'x');
  await world.clock.pass(100);
  world.chatd.say('bob', 'alice', 'y');
  await world.clock.pass(1000);
  for (const each of all) {
    assert.deepEqual([each.client.stores.line.getSnapshot().state, bodies(each)], ['online', ['x', 'y']]);
  }
  assert.equal(new Set(world.chatd.sessionsOf('alice').map(({ device }) => device)).size, all.length);
  all.push(await world.open(facts));
  const lines = all.map(({ client }) => client.stores.line.getSnapshot());
  assert.deepEqual(
    lines.filter(({ state }) => state !== 'online').map(({ state, reason }) => [state, reason]),
    [['stopped', 'too_many_devices']],
  );
});

test('where the browser refuses locks each tab is on its own', async () => {
  const world = new World();
  const locks: Locks = { request: () => Promise.reject(new DOMException('a sandboxed frame', 'SecurityError')) };
  const channel = (): Channel => ({ onmessage: null, postMessage() {}, close() {} });
  const facts = { user: 'alice', tabs: tabs({ locks, channel }), store: shared() };
  const [one, two] = [await world.open(facts), await world.open(facts)];
  void one.client.send('bob', 'x');
  await world.clock.pass(1000);
  assert.deepEqual([one.role(), two.role(), bodies(one), bodies(two)], ['leader', 'leader', ['x'], ['x']]);
});

/** A store of all tabs of a browser: who opens it takes it. */
function shared() {
  const records: Map<string, unknown> = new Map();
  let owner: ChatClient;
  return (client: ChatClient) => {
    const store: Store = {
      open: async () => {
        owner = client;
        return new Map(records);
      },
      save: async (changes) => {
        if (owner !== client) throw new Error('taken');
        for (const [key, value] of changes) records.set(key, value);
      },
      close() {},
    };
    return persist(store)(client);
  };
}

/** A leads; what it says reaches B late, and C at once. */
async function unequal(facts: Partial<ChatClientOptions> = {}) {
  const world = new World();
  const [a, b, c] = [await world.open(facts), await world.open(facts), await world.open(facts)];
  world.chatd.say('bob', 'alice', 'first');
  await world.clock.pass(100);
  b.tab.lagMs = 500;
  return { world, a, b, c };
}

test('the next leader knows less than a follower: nothing comes twice there', async () => {
  const { world, a, b, c } = await unequal();
  world.chatd.say('bob', 'alice', 'second');
  await world.clock.pass(10);
  assert.deepEqual([b.entries.length, c.entries.length], [1, 2]);
  a.tab.die();
  await world.clock.pass(2000);
  world.chatd.say('bob', 'alice', 'third');
  await world.clock.pass(1000);
  assert.equal(b.role(), 'leader');
  for (const one of [b, c])
    assert.deepEqual(
      one.entries.map(({ seq }) => seq),
      [1, 2, 3],
    );
});

test('the last leader had it, the next one never heard of it: who said it says it again', async () => {
  const { world, a, b, c } = await unequal();
  world.chatd.isDown = true;
  world.chatd.cut();
  await world.clock.pass(10);
  void c.client.send('bob', 'mine');
  await world.clock.pass(10);
  assert.deepEqual(
    [a, b, c].map(({ client }) => client.stores.outbox.getSnapshot().length),
    [1, 0, 1],
  );
  a.tab.die();
  await world.clock.pass(1000);
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  assert.deepEqual([b.role(), world.chatd.texts('alice', 'bob')], ['leader', ['first', 'mine']]);
});

test('what a follower says stays in sight while the leader tells of other things', async () => {
  const { world, a, c } = await unequal();
  world.chatd.isDown = true;
  world.chatd.cut();
  await world.clock.pass(10);
  a.tab.lagMs = 100;
  void c.client.send('bob', 'mine');
  void a.client.send('bob', 'other');
  for (let i = 0; i < 30; i += 1) {
    await world.clock.pass(10);
    assert.ok(bodies(c).includes('mine'));
  }
  assert.deepEqual(bodies(a).toSorted(), ['first', 'mine', 'other']);
});

test('what a leader did not answer any more is asked of the next', async () => {
  const { world, a, b, c } = await unequal();
  b.tab.lagMs = 0;
  a.tab.lagMs = 10;
  const page = Promise.resolve(c.client.history('bob'));
  await world.clock.pass(1);
  a.tab.die();
  await world.clock.pass(1000);
  assert.deepEqual(
    (await page).entries.map(({ body }) => body),
    ['first'],
  );
});

test('a follower that leads knows more than what the last leader had stored', async () => {
  const kept = new Map<string, unknown>();
  let isStoring = true;
  const store: Store = {
    open: async () => structuredClone(kept),
    save: async (changes) => {
      if (isStoring) for (const [key, value] of changes) kept.set(key, value);
    },
    close: () => {},
  };
  const { world, a, b } = await unequal({ store: persist(store) });
  b.tab.lagMs = 0;
  isStoring = false;
  world.chatd.say('bob', 'alice', 'not stored');
  await world.clock.pass(10);
  a.tab.die();
  await world.clock.pass(2000);
  assert.deepEqual(
    b.entries.map(({ seq }) => seq),
    [1, 2],
  );
  assert.deepEqual(bodies(b), ['first', 'not stored']);
});

test('a conversation that was begun while nobody was connected: all of it comes', async () => {
  const world = new World();
  const one = await world.open();
  world.chatd.isDown = true;
  world.chatd.cut();
  await world.clock.pass(100);
  world.chatd.say('dora', 'alice', 'one', 'two');
  world.chatd.isDown = false;
  await world.clock.pass(60000);
  assert.deepEqual(
    one.entries.map(({ from, seq }) => [from, seq]),
    [
      ['dora', 1],
      ['dora', 2],
    ],
  );
});

test('whatever dies, freezes or is cut, and when: each tab shows the log, each entry once and in order', async () => {
  for (const seed of seeds(25)) await withSeed(seed, rough);
}, 60_000);

async function rough(d: Dice): Promise<void> {
  const world = new World(() => d.below(30));
  let all: Open[] = [await world.open(), await world.open(), await world.open()];
  const said: string[] = [];
  for (let step = 0; step < 60; step += 1) {
    const roll = d.below(12);
    const one = d.pick(all);
    if (roll < 5) {
      const body = `m${step}`;
      said.push(body);
      void one.client.send('bob', body);
      // One that is killed within this time has said it to nobody.
      await world.clock.pass(1);
    } else if (roll < 7) world.chatd.say('bob', 'alice', `b${step}`);
    else if (roll === 7 && all.length > 1) {
      one.tab.die();
      all = all.filter((other) => other !== one);
    } else if (roll === 8 && all.length < 5) all.push(await world.open());
    else if (roll === 9) world.chatd.cut();
    else if (roll === 10)
      world.chatd.failNext('send', d.pick(['cut', 'cut after', { code: 'overloaded', retry_ms: 100 }]));
    await world.clock.pass(d.below(400));
  }
  await world.clock.pass(240_000);
  const truth = world.chatd.texts('alice', 'bob');
  assert.deepEqual(truth.filter((text) => text?.startsWith('m')).sort(), [...said].sort(), 'each once');
  for (const one of all) {
    const { client, entries } = one;
    assert.deepEqual(client.stores.outbox.getSnapshot(), [], 'outbox');
    const seqs = entries.map(({ seq }) => seq);
    assert.deepEqual(
      seqs,
      seqs.map((_, i) => (seqs[0] ?? 0) + i),
      'entries: once and in order',
    );
    assert.equal(seqs.at(-1) ?? truth.length, truth.length, 'entries: to the end');
    const shown = client.stores.messages('bob').getSnapshot().messages;
    assert.deepEqual(
      shown.map(({ body }) => body),
      truth.slice(truth.length - shown.length),
      'shown',
    );
  }
}
