/**
 * Whole clients against the fake server, over lines that are slow, are cut at any instant (also between a commit and
 * its answer) and fall silent, and a server that refuses, drains and closes. In the end everybody shows the log, each
 * message once, in the order its author wrote it. A failure names its SEED; `SEED=n` runs that one alone.
 */
import { describe, expect, test } from 'vitest';
import { ChatClient, type LiveEntry, type PlatformHooks } from '../src/index.js';
import { FakeChatd, type Fault, type frames, TestClock } from '../src/testing/index.js';
import { type Dice, seeds, withSeed } from './dice.js';

const PEOPLE = ['alice', 'bob', 'carol'] as const;
const STEPS = 120;
const SEEDS = 200;

/** One device of somebody: it shows nothing and looks at everything. */
class Tab {
  readonly user: string;
  readonly client: ChatClient;
  readonly entries: LiveEntry[] = [];
  /** Peer -> what this one wrote. */
  readonly said = new Map<string, string[]>();
  readonly errors: unknown[] = [];
  hooks: PlatformHooks | undefined;

  constructor(user: string, chatd: FakeChatd, clock: TestClock, dice: Dice, WebSocket = chatd.WebSocket) {
    this.user = user;
    this.client = new ChatClient({
      url: chatd.url,
      clock,
      random: dice.random,
      webSocket: WebSocket,
      token: async () => chatd.token(user, { ttlMs: 100_000 }),
      platform: (hooks) => {
        this.hooks = hooks;
        return () => {};
      },
    });
    this.client.on('error', (error) => this.errors.push(error));
    this.client.on('malformed', (frame) => this.errors.push(frame));
    void this.#listen();
    void this.client.start();
  }

  async #listen(): Promise<void> {
    for await (const entry of this.client.entries()) this.entries.push(entry);
  }

  messages(peer: string) {
    return this.client.stores
      .messages(peer)
      .getSnapshot()
      .messages.filter(({ seq }) => seq !== null);
  }
}

/** Something that a user does. */
function act(tab: Tab, dice: Dice, n: number): void {
  const { client } = tab;
  const peer = dice.pick(PEOPLE);
  const own = tab.messages(peer).filter(({ from, body }) => from === tab.user && body !== null);
  const target = own.length > 0 ? dice.pick(own) : undefined;
  const roll = dice.below(12);
  if (roll < 5 || tab.messages(peer).length === 0) {
    void client.send(peer, `${tab.user}-${n}`);
    tab.said.set(peer, [...(tab.said.get(peer) ?? []), `${tab.user}-${n}`]);
  } else if (roll < 7 && target) void client.edit(peer, target, `${tab.user}-${n}-edited`);
  else if (roll < 8 && target) void client.delete(peer, target);
  else if (roll < 10) client.read(peer);
  else if (roll < 11) client.load(peer).catch(() => {});
  else tab.hooks?.wake();
}

/** What befalls a request of a rough net. */
function roughness(dice: Dice): (t: unknown) => Fault | undefined {
  return (t) => {
    const isEntry = t === 'send' || t === 'edit' || t === 'delete';
    if (isEntry && dice.chance(0.08))
      return { code: dice.pick(['rate_limited', 'overloaded', 'unavailable']), retry_ms: 50 + dice.below(500) };
    if (dice.chance(0.03)) return dice.pick(['cut', 'cut after'] as const);
    // No server drops an entry and takes the next one: what is not done is answered, or the connection ends.
    if (dice.chance(0.01)) return isEntry ? 'swallow after' : dice.pick(['swallow', 'swallow after'] as const);
    return dice.chance(0.03) && t !== 'hello' && !isEntry ? { delayMs: dice.below(300) } : undefined;
  };
}

/** Something that happens to the lines or the server. */
function strike(chatd: FakeChatd, dice: Dice): void {
  const session = dice.pick(chatd.sessions);
  if (session === undefined) return;
  const roll = dice.random();
  if (roll < 0.2) chatd.drain(dice.below(800), dice.below(300));
  else if (roll < 0.36) session.close(dice.pick([1012, 4006, 4007]));
  else if (roll < 0.8) session.cut();
  else session.fallSilent();
}

/** All of it; gives the tabs for more checks. */
async function rough(
  dice: Dice,
  spoilt: (chatd: FakeChatd) => FakeChatd['WebSocket'] = (one) => one.WebSocket,
): Promise<void> {
  const clock = new TestClock();
  const chatd = new FakeChatd({
    clock,
    latency: () => dice.below(60),
    resyncEntriesMax: 12,
    welcomeItems: 1,
    rateMessages: 20,
    framesPerS: 1000,
  });
  const befalls = roughness(dice);
  chatd.fault = (_session, { t }) => befalls(t);
  const tabs = ['alice', 'alice', 'bob', 'carol'].map((user) => new Tab(user, chatd, clock, dice, spoilt(chatd)));
  for (let n = 0; n < STEPS; n += 1) {
    await clock.pass(dice.below(300));
    act(dice.pick(tabs), dice, n);
    if (dice.chance(0.12)) strike(chatd, dice);
  }
  chatd.fault = () => undefined;
  await clock.pass(150_000);
  for (const tab of tabs) await check(tab, tabs, chatd, clock);
  expect(chatd.unsaidRepeats, 'a repeat says that it is one').toEqual([]);
  for (const { client } of tabs) await client.stop();
}

async function check(tab: Tab, tabs: Tab[], chatd: FakeChatd, clock: TestClock): Promise<void> {
  const { user, client } = tab;
  expect(client.stores.line.getSnapshot(), `${user}: line`).toMatchObject({ state: 'online' });
  expect(
    client.stores.outbox.getSnapshot().filter(({ state }) => state === 'sending'),
    `${user}: outbox`,
  ).toEqual([]);
  expect(tab.errors, `${user}: errors`).toEqual([]);
  for (const peer of PEOPLE) {
    const view = client.stores.messages(peer);
    for (let n = 0; view.getSnapshot().hasOlder && n < 20; n += 1) {
      client.load(peer).catch(() => {});
      await clock.pass(500);
    }
    const log = chatd.log(user, peer);
    const messages = log.entries.filter(({ kind }) => kind === 'message');
    const truth = messages
      .map((entry) => log.standing(entry, user))
      .map(({ seq, from, body }) => ({ seq, from, body }));
    const shown = tab.messages(peer).map(({ seq, from, body }) => ({ seq, from, body }));
    expect(shown, `${user} with ${peer}`).toEqual(truth);
    checkEntries(tab, log.c, log.head);
    checkCursors(tab, peer, chatd);
  }
  for (const [peer, said] of tabs.filter((one) => one.user === user).flatMap((one) => [...one.said])) {
    const isOwn = ({ kind, from }: frames.Entry): boolean => kind === 'message' && from === user;
    const written = chatd.log(user, peer).entries.filter(isOwn);
    const stored = written.map(({ body }) => body ?? '');
    expect(
      stored.filter((body) => said.includes(body)),
      `${user} to ${peer}: once, in order`,
    ).toEqual(said);
  }
}

/** What came as it happened: from wherever it began, each seq once, in order, to the end. */
function checkEntries({ user, entries }: Tab, c: string, head: number): void {
  const seqs = entries.filter((entry) => entry.c === c).map(({ seq }) => seq);
  const first = seqs[0] ?? head + 1;
  const whole = Array.from({ length: head - first + 1 }, (_, n) => first + n);
  expect(seqs, `${user}: entries of ${c}`).toEqual(whole);
}

function checkCursors({ user, client }: Tab, peer: string, chatd: FakeChatd): void {
  const row = client.stores.conversations.getSnapshot().find((one) => one.peer === peer);
  if (row === undefined || peer === user) return;
  const log = chatd.log(user, peer);
  const item = log.item(user);
  const { read } = client.stores.messages(peer).getSnapshot();
  const { unread } = row;
  expect({ unread, read }, `${user} with ${peer}`).toEqual({ unread: item.unread, read: item.read });
  const lastOfPeer = log.entries.findLast(({ kind, from }) => kind === 'message' && from === peer)?.seq ?? 0;
  expect(item.delivered, `${user}: delivered of ${peer}`).toBeGreaterThanOrEqual(lastOfPeer);
}

describe('rough nets: nothing lost, nothing twice, nothing out of order, and all agree', () => {
  test.each(seeds(SEEDS).map((seed) => [seed]))('SEED=%d', (seed) => withSeed(seed, rough), 60_000);
});

describe('the checks see a fault that is seeded', () => {
  /** Sockets whose messages to the client, or to the server, pass through `spoil`. */
  const spoilt =
    (spoil: (text: string, way: 'up' | 'down') => string[]) =>
    (chatd: FakeChatd): FakeChatd['WebSocket'] =>
      class extends chatd.WebSocket {
        override send(data: string): void {
          for (const text of spoil(data, 'up')) super.send(text);
        }

        override _message(text: string): void {
          for (const one of spoil(text, 'down')) super._message(one);
        }
      };
  const faults: Record<string, (text: string, way: 'up' | 'down') => string[]> = {
    'a repeat with another cid': (text, way) =>
      way === 'up' && text.includes('"retry":true')
        ? [text.replace(/"cid":"[^"]{8}/, `"cid":"${randomHex()}`)]
        : [text],
    'a repeat that does not say so': (text, way) => [way === 'up' ? text.replace(',"retry":true', '') : text],
    'an edit that is not shown': (text, way) =>
      way === 'down' && text.includes('"t":"entry"') ? [text.replace(/-edited"/, '"')] : [text],
    'a read that is not told': (text, way) => [way === 'up' ? text.replace('"t":"read"', '"t":"ack"') : text],
  };
  test.each(Object.keys(faults))(
    '%s',
    async (name) => {
      const spoil = spoilt(faults[name] ?? ((text) => [text]));
      const seen: unknown[] = [];
      for (let seed = 1; seed <= 20 && seen.length === 0; seed += 1)
        await withSeed(seed, (dice) => rough(dice, spoil)).catch((error) => seen.push(error));
      expect(seen.length).toBe(1);
    },
    60_000,
  );
});

const randomHex = (): string =>
  Math.floor(Math.random() * 2 ** 32)
    .toString(16)
    .padStart(8, '0');
