/**
 * A server that sends what no server should: frames cut short, with values of other types, without keys, of unknown
 * types, with ids of others. Nothing is thrown out of the client, and when a sound server is back it shows what that
 * one says. `FUZZ=100000` runs that many streams (some 2 minutes); CI runs 10,000.
 */
import { expect, test } from 'vitest';
import { ChatClient, type SocketClass } from '../src/index.js';
import { TestClock } from '../src/testing/index.js';
import { FakeWebSocket, type Line, type Network } from '../src/testing/socket.js';
import { type Dice, dice } from './dice.js';
import { LIMITS } from './fakes.js';

const STREAMS = Number(process.env.FUZZ ?? 10_000);
const FRAMES = 8;
const T0 = 1_790_000_000_000;

type Any = { [key: string]: unknown };

const ITEM = {
  c: '12',
  peer: 'bob',
  head: 3,
  floor: 1,
  ts: T0,
  delivered: 1,
  read: 1,
  peer_delivered: 0,
  peer_read: 0,
  unread: 2,
  open: true,
};
const ENTRY = { seq: 4, ts: T0, from: 'bob', to: 'alice', kind: 'message', body: 'hi' };
const WELCOME = {
  t: 'welcome',
  id: 1,
  user: 'alice',
  device: 'd',
  v: 1,
  features: [],
  epoch: 'e1',
  ts: T0,
  heartbeat_ms: 20000,
  exp: 4000000000000,
  limits: LIMITS,
  presence: [{ user: 'bob', state: 'online', v: 1 }],
  conversations: [ITEM],
  more: false,
  since: 's1',
};
const ALL: Any[] = [
  WELCOME,
  { t: 'entry', c: '12', ...ENTRY },
  { t: 'entry', c: '12', ...ENTRY, seq: 5, kind: 'edit', ref: 4, body: 'ho' },
  { t: 'entry', c: '12', ...ENTRY, seq: 6, kind: 'delete', ref: 4, body: undefined },
  { t: 'receipt', c: '12', from: 'bob', to: 'alice', delivered: 3, read: 2 },
  { t: 'presence', user: 'bob', state: 'away', v: 3 },
  { t: 'typing', c: '12', from: 'bob', to: 'alice' },
  { t: 'notice', kind: 'drain', retry_ms: 100 },
  { t: 'ok', id: 2, c: '12', seq: 4, ts: T0 },
  { t: 'ok', id: 3, c: '12', delivered: 3, read: 3 },
  { t: 'ok', id: 2, c: '12', entries: [ENTRY], more: true, head: 4, floor: 1 },
  { t: 'ok', id: 2, conversations: [ITEM], cursor: 'x' },
  { t: 'err', id: 2, code: 'rate_limited', msg: 'x', retry_ms: 100 },
  { t: 'err', id: 0, code: 'bad_frame', msg: 'x' },
  { t: 'pong', id: 2, ts: T0 },
];
const VALUES: unknown[] = [
  null,
  true,
  -1,
  0,
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
  const keys = Object.keys(value);
  const key = d.pick(keys);
  const { [key]: old, ...rest } = value as Any;
  const roll = d.random();
  if (roll < 0.25) return rest;
  if (roll < 0.35) return { ...rest, [d.pick(['t', 'id', 'c', 'seq', 'constructor'])]: old };
  return { ...rest, [key]: roll < 0.7 ? d.pick(VALUES) : mutated(old, d) };
}

/** The text of a frame that nobody should send. */
function bad(d: Dice): string {
  const roll = d.random();
  if (roll < 0.1) return d.pick(GARBAGE);
  let frame: unknown = { ...d.pick(ALL), ...(d.chance(0.3) ? { id: d.below(6) } : {}) };
  for (let n = d.below(3); n >= 0; n -= 1) frame = mutated(frame, d);
  const text = JSON.stringify(frame) ?? '';
  return roll < 0.2 ? text.slice(0, d.below(text.length)) : text;
}

/** A server that a test plays: the lines that came, and the hellos on them. */
class Server {
  line: Line | undefined;
  hello: Any | undefined;
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
            const frame: Any = JSON.parse(text ?? '{}');
            if (frame.t !== 'hello') return;
            this.hello = frame;
            if (this.isSound) this.#welcome(frame);
          },
          closed: () => {},
        };
      },
    };
    const made = class extends FakeWebSocket {
      constructor(url: string, protocols: string) {
        super(network, url, protocols);
      }
    };
    this.WebSocket = made;
  }

  #welcome({ id }: Any): void {
    const item = { ...ITEM, c: '7', peer: 'carol', head: 0, unread: 0, read: 0, delivered: 0 };
    this.say({ ...WELCOME, id, epoch: 'e9', conversations: [item] });
    this.say({ t: 'entry', c: '7', ...ENTRY, seq: 1, from: 'carol', body: 'sound' });
  }

  say(frame: Any): void {
    this.line?.send(JSON.stringify(frame));
  }
}

/** One stream, and then a sound server of another epoch. */
async function stream(seed: number): Promise<void> {
  const d = dice(seed);
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
  if (d.chance(0.7)) server.say(WELCOME);
  const sent = Array.from({ length: FRAMES }, () => bad(d));
  for (const text of sent) server.line?.send(text);
  await clock.pass(100);
  for (const peer of ['bob', 'x']) client.stores.messages(peer).getSnapshot();
  client.stores.conversations.getSnapshot();
  client.stores.outbox.getSnapshot();
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
  for (const seed of seeds) {
    try {
      await stream(seed);
    } catch (error) {
      throw new Error(`SEED=${seed}: ${error}`, { cause: error });
    }
  }
}, 600_000);
