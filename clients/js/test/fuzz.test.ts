/**
 * Whatever the other side says: frames cut short, with values of other types, without keys, of unknown types, out of time,
 * with ids of others. Nothing is thrown out of the client, what is shown stays well-formed, and once a sound server is
 * back it shows what that one says. `FUZZ=100000` runs that many streams; CI runs 10,000. `SEED=n` runs that one alone.
 */
import assert from 'node:assert/strict';
import { expect, test } from 'vitest';
import { ChatClient, type SocketClass } from '../src/index.js';
import { FakeWebSocket, type Line, type Network } from '../src/testing/socket.js';
import { type Dice, withSeed } from './dice.js';
import { entry, item, type Json, TestClock, uuid, WELCOME } from './fakes.js';

const STREAMS = Number(process.env.FUZZ ?? 10_000);
const STEPS = 8;
const CID = uuid();

const LISTED = { ...WELCOME, conversations: [item({ head: 3, unread: 2 }), item({ c: '13', peer: 'carl', head: 2 })] };
const OF_HISTORY = { ...entry(2), t: undefined };
const FRAMES: Json[] = [
  { ...LISTED, presence: [{ user: 'bob', state: 'online', v: 1 }], exp: 4000000000000 },
  { ...WELCOME, epoch: 'e2', conversations: [item({ head: 1, reset: true })], more: true },
  { ...WELCOME, user: 'mallory' },
  { t: 'welcome', id: 1, conversations: [item({ head: 9, page: true })], more: false, since: 's2' },
  entry(4),
  entry(5, { kind: 'edit', ref: 4, body: 'ho' }),
  entry(6, { kind: 'delete', ref: 4, body: undefined }),
  entry(7, { kind: 'reaction', ref: 4 }),
  entry(4, { from: 'alice', to: 'bob', cid: CID }),
  entry(1, { c: '77', from: 'dora' }),
  { t: 'receipt', c: '12', from: 'bob', to: 'alice', delivered: 3, read: 2 },
  { t: 'receipt', c: '12', from: 'alice', to: 'bob', delivered: 5, read: 4 },
  { t: 'presence', user: 'bob', state: 'away', v: 3 },
  { t: 'typing', c: '12', from: 'bob', to: 'alice' },
  { t: 'notice', kind: 'drain', retry_ms: 100 },
  { t: 'later_than_us', c: '12', what: [1] },
  { t: 'ok', id: 2, c: '12', seq: 4, ts: 7 },
  { t: 'ok', id: 2, c: '12', seq: 4, ts: 7, dup: true },
  { t: 'ok', id: 3, c: '12', delivered: 3, read: 3 },
  { t: 'ok', id: 2, presence: [{ user: 'bob', state: 'away', v: 9 }] },
  { t: 'ok', id: 2, c: '12', entries: [OF_HISTORY, { ...OF_HISTORY, seq: 3 }], more: true, head: 4, floor: 1 },
  { t: 'ok', id: 2, conversations: [item()], cursor: 'x' },
  { t: 'err', id: 2, code: 'rate_limited', msg: 'x', retry_ms: 100 },
  { t: 'err', id: 2, code: 'blocked', cid: CID },
  { t: 'err', id: 2, code: 'unauthorized', msg: 'no' },
  { t: 'err', id: 0, code: 'bad_frame', msg: 'x' },
  { t: 'pong', id: 2, ts: 1_790_000_000_000 },
];
const VALUES: unknown[] = [
  null,
  true,
  -1,
  0,
  6,
  1.5,
  1e300,
  2 ** 53,
  '',
  'x',
  '12',
  '\ud83d',
  [],
  {},
  [[]],
  [null],
  { c: null },
  'constructor',
  '__proto__',
];
const GARBAGE = [
  '',
  '{',
  'null',
  '[]',
  '7',
  '"entry"',
  '{"t":7}',
  '{"t":"entry"}',
  '{"t":"__proto__"}',
  '{"__proto__":{"t":"ok"},"id":2}',
];

/** The same frame with something else in it, at any depth. */
function mutated(value: unknown, d: Dice): unknown {
  if (Array.isArray(value) && value.length > 0 && d.chance(0.8)) return value.map((one) => mutated(one, d));
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return d.pick(VALUES);
  const key = d.pick(Object.keys(value));
  const { [key]: old, ...rest } = value as Json;
  const roll = d.random();
  if (roll < 0.25) return rest;
  if (roll < 0.35) return { ...rest, [d.pick(['t', 'id', 'c', 'seq', 'constructor'])]: old };
  return { ...rest, [key]: roll < 0.7 ? d.pick(VALUES) : mutated(old, d) };
}

/** The text of a frame that nobody should send, or not now. */
function bad(d: Dice): string {
  const roll = d.random();
  if (roll < 0.1) return d.pick(GARBAGE);
  let frame: unknown = { ...d.pick(FRAMES), ...(d.chance(0.3) ? { id: d.below(6) } : {}) };
  for (let n = d.below(4); n > 0; n -= 1) frame = mutated(frame, d);
  const text = JSON.stringify(frame) ?? '';
  return roll < 0.2 ? text.slice(0, d.below(text.length)) : text;
}

/** A server that a test plays: the line that came last, and the hello on it. */
class Server {
  line: Line | undefined;
  hello: Json | undefined;
  /** From now on it is a sound one, and answers each hello. */
  isSound = false;
  readonly WebSocket: SocketClass;

  constructor(clock: TestClock) {
    const network: Network = {
      clock,
      latency: () => 0,
      accept: (line) => {
        this.line = line;
        this.hello = undefined;
        return {
          heard: (text) => {
            const frame: Json = JSON.parse(text ?? '{}');
            if (frame.t !== 'hello') return;
            this.hello = frame;
            if (this.isSound) this.#welcome(frame);
          },
          closed: () => {},
        };
      },
    };
    this.WebSocket = class extends FakeWebSocket {
      constructor(url: string, protocols: string) {
        super(network, url, protocols);
      }
    };
  }

  #welcome({ id }: Json): void {
    this.say({ ...WELCOME, id, epoch: 'sound', conversations: [item({ c: '7', peer: 'carol' })] });
    this.say(entry(1, { c: '7', from: 'carol', body: 'sound' }));
  }

  say(frame: Json): void {
    this.line?.send(JSON.stringify(frame));
  }
}

/** What the application does, and the network. */
const ACTS: ((client: ChatClient, server: Server, clock: TestClock) => void | Promise<void>)[] = [
  (client) => void client.send('bob', 'x'),
  (client) => client.read('bob'),
  (client) => void Promise.resolve(client.history('bob')).catch(() => {}),
  (client) => void client.load('bob').catch(() => {}),
  (_, server) => server.line?.cut(true),
  (_, __, clock) => clock.pass(500),
  (_, server) => server.say({ ...LISTED, id: server.hello?.id }),
];

/** All that is shown has the types that it says. */
function checkShown(client: ChatClient): void {
  const { conversations, messages, outbox, line } = client.stores;
  assert.ok(['connecting', 'online', 'offline', 'stopped'].includes(line.getSnapshot().state));
  for (const row of conversations.getSnapshot()) {
    assert.ok(typeof row.peer === 'string' && row.peer !== '', `peer ${row.peer}`);
    assert.ok(Number.isSafeInteger(row.unread) && row.unread >= 0, `unread ${row.unread}`);
    assert.ok(Number.isFinite(row.ts), `ts ${row.ts}`);
    const { messages: shown, read, missedTo } = messages(row.peer).getSnapshot();
    assert.ok(Number.isSafeInteger(read) && Number.isSafeInteger(missedTo), `read ${read}`);
    let last = 0;
    for (const { body, from, seq } of shown) {
      assert.ok(body === null || typeof body === 'string');
      assert.ok(typeof from === 'string');
      assert.ok(seq === null || (Number.isSafeInteger(seq) && seq > last), `in order, once: ${seq} after ${last}`);
      last = seq ?? last;
    }
    assert.equal(new Set(shown.map(({ key }) => key)).size, shown.length, 'keys differ');
  }
  for (const { state } of outbox.getSnapshot()) assert.ok(state === 'sending' || state === 'failed');
}

/** One stream, and then a sound server of another epoch. */
async function stream(d: Dice): Promise<void> {
  const clock = new TestClock();
  const server = new Server(clock);
  const thrown: unknown[] = [];
  const client = new ChatClient({
    url: 'ws://x/ws',
    clock,
    webSocket: server.WebSocket,
    random: d.random,
    token: async () => 't',
  });
  client.on('error', (error) => thrown.push(error));
  void client.start();
  void client.send('bob', 'mine');
  client.load('bob').catch(() => {});
  await clock.until(() => server.hello !== undefined, 'a hello');
  if (d.chance(0.7)) server.say(LISTED);
  const sent: string[] = [];
  for (let step = 0; step < STEPS; step += 1) {
    if (d.chance(0.2)) await d.pick(ACTS)(client, server, clock);
    else {
      sent.push(bad(d));
      server.line?.send(sent.at(-1) ?? '');
    }
    if (d.chance(0.5)) continue; // several at once
    await clock.pass(d.chance(0.3) ? 100 : 0);
    checkShown(client);
  }
  await clock.pass(100);
  checkShown(client);
  server.isSound = true;
  server.line?.close(1012, '');
  const { state, reason } = client.stores.line.getSnapshot();
  if (state === 'stopped') {
    // A refusal for good of its hello ends a client, until the application acts.
    expect(sent.some((text) => text.includes('"err"'))).toBe(true);
    expect(reason).not.toMatch(/undefined|object/);
    void client.start();
  }
  await clock.until(() => client.stores.messages('carol').getSnapshot().messages.length > 0, 'an entry', 400_000);
  checkShown(client);
  const rows = client.stores.conversations.getSnapshot().map(({ peer, c, unread }) => ({ peer, c, unread }));
  const shown = client.stores
    .messages('carol')
    .getSnapshot()
    .messages.map(({ seq, from, body }) => ({ seq, from, body }));
  expect(client.stores.line.getSnapshot().state).toBe('online');
  expect(rows.filter(({ c }) => c !== null)).toEqual([{ peer: 'carol', c: '7', unread: 1 }]);
  expect(shown).toEqual([{ seq: 1, from: 'carol', body: 'sound' }]);
  expect(thrown).toEqual([]);
  await client.stop();
}

test(`${STREAMS} streams of bad frames end nothing, and leave nothing behind`, async () => {
  const seeds =
    process.env.SEED === undefined ? Array.from({ length: STREAMS }, (_, n) => n) : [Number(process.env.SEED)];
  for (const seed of seeds) await withSeed(seed, stream);
}, 600_000);
