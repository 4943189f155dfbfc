/** One connection, and getting one: what is silent, lost, refused or draining. */

import assert from 'node:assert/strict';
import { beforeEach, test } from 'vitest';
import { CONNECT_MS_MAX, Dialer, type TokenProvider } from '../src/dial.js';
import { ANSWER_MS_MAX, Link, type LinkParts, PROBE_MS_MAX, SILENCE_MS, Timers } from '../src/link.js';
import { AT_ONCE_MS, SETTLED_MS } from '../src/wire.js';
import { FakeSocket, type Json, settle, socket, TestClock } from './fakes.js';

const HEARTBEAT_MS = 20000;

beforeEach(() => {
  FakeSocket.made = [];
});

function linked(facts: Partial<LinkParts> = {}) {
  const clock = new TestClock(1000);
  const heard: unknown[] = [];
  const link = new Link({
    url: 'ws://x/ws',
    WebSocket: FakeSocket,
    clock,
    onOpen: () => heard.push('open'),
    onFrame: (frame) => heard.push(frame),
    onClose: (code) => heard.push(code),
    onSilent: () => heard.push('silent'),
    onTime: (ts) => heard.push(ts),
    ...facts,
  });
  socket().open();
  return { clock, heard, link };
}

async function dialed({
  token = async () => 'tok',
  random = () => 0.5,
}: {
  token?: TokenProvider;
  random?: () => number;
} = {}) {
  const clock = new TestClock(1000);
  const heard: unknown[] = [];
  const dial = new Dialer({
    url: 'ws://x/ws',
    WebSocket: FakeSocket,
    clock,
    random,
    token,
    onOpen: (fresh) => heard.push(`open ${fresh}`),
    onFrame: (frame) => heard.push(frame),
    onDown: () => heard.push('down'),
    onLine: () => {},
    onTime: () => {},
  });
  dial.connect();
  await settle();
  return { clock, heard, dial };
}

// --- Link -----------------------------------------------------------------------------------------------------------

test('requests are numbered and each is answered once, in whatever order', () => {
  const { link, heard } = linked();
  const got: unknown[] = [];
  link.request({ t: 'a' }, (frame) => got.push(['a', frame.t]));
  link.request({ t: 'b' }, (frame) => got.push(['b', frame.t]));
  socket().say({ t: 'err', id: 2, code: 'x' });
  socket().say({ t: 'ok', id: 1 });
  socket().say({ t: 'ok', id: 1 });
  socket().say({ t: 'entry', seq: 1 });
  socket().say('garbage');
  assert.deepEqual(got, [
    ['b', 'err'],
    ['a', 'ok'],
  ]);
  assert.deepEqual(heard, ['open', { t: 'entry', seq: 1 }]);
  assert.equal(socket().offered, 'chatd.v1');
});

test('leaving answers what waits by "disconnected", and nothing is heard after it', () => {
  const { link, heard } = linked();
  const got: unknown[] = [];
  link.request({ t: 'a' }, (frame) => got.push(frame.code));
  link.leave();
  link.leave();
  socket().say({ t: 'entry' });
  socket().end(1000);
  link.request({ t: 'b' }, (frame) => got.push(frame.code));
  assert.deepEqual([got, heard, socket().closedBy], [['disconnected', 'disconnected'], ['open'], 1000]);
});

test('a dead line is found within the heartbeat, however the silence falls on the checks', async () => {
  for (const last of [0, 1, SILENCE_MS - 1, SILENCE_MS / 2]) {
    const { clock, heard, link } = linked();
    link.watchSilence();
    await clock.pass(last);
    socket().say({ t: 'entry' });
    const from = clock.now();
    while (!heard.includes('silent') && clock.now() - from < 60000) await clock.pass(100);
    assert.ok(clock.now() - from < HEARTBEAT_MS, `heard last after ${last} ms: found after ${clock.now() - from}`);
    assert.equal(socket().sent.filter(({ t }) => t === 'ping').length, 1);
  }
});

test('any frame calms a probe, and a line with traffic is never probed', async () => {
  const { clock, heard, link } = linked();
  link.watchSilence();
  link.probe();
  link.probe();
  await clock.pass(PROBE_MS_MAX - 1);
  socket().say({ t: 'entry' });
  socket().say({ t: 'pong', id: 1 });
  await clock.pass(PROBE_MS_MAX);
  for (let i = 0; i < 20; i += 1) {
    await clock.pass(SILENCE_MS / 2);
    socket().say({ t: 'entry' });
  }
  assert.ok(!heard.includes('silent'));
  assert.equal(socket().sent.length, 1);
});

test('a request without an answer ends the line even if other frames come', async () => {
  const { clock, heard, link } = linked();
  link.watchSilence();
  link.request({ t: 'send' }, () => {});
  for (let at = 0; at <= ANSWER_MS_MAX + SILENCE_MS && !heard.includes('silent'); at += 3000) {
    await clock.pass(3000);
    socket().say({ t: 'entry' });
  }
  assert.ok(heard.includes('silent'));
});

test('a timer that is set anew runs once, at the later time; a wait beyond 2^31 ms is cut, not zero', async () => {
  const clock = new TestClock(1000);
  const timers = new Timers(clock);
  let runs = 0;
  timers.set('a', 10, () => {
    runs += 1;
  });
  timers.set('a', 30, () => {
    runs += 1;
  });
  timers.set('far', 2 ** 40, () => {
    runs += 100;
  });
  await clock.pass(29);
  assert.equal(runs, 0);
  await clock.pass(1);
  assert.equal(runs, 1);
  assert.ok(timers.has('far') && !timers.has('a'));
  timers.clearAll();
  assert.equal(clock.waiting, 0);
});

// --- Dialer ---------------------------------------------------------------------------------------------------------

test('a token, a connection, a hello; live once told', async () => {
  const { dial, heard } = await dialed();
  socket().open();
  assert.deepEqual(heard, ['down', 'open tok']);
  assert.equal(dial.line.state, 'connecting');
  dial.live();
  assert.equal(dial.line.state, 'online');
  dial.connect();
  assert.equal(FakeSocket.made.length, 1, 'idempotent');
});

test('lost: the first try within a quarter of a second, then with back-off to 30 s, and from the start again once a connection has lived', async () => {
  const { clock, dial } = await dialed({ random: () => 0.999999 });
  socket().open();
  dial.live();
  const waits: number[] = [];
  for (let i = 0; i < 9; i += 1) {
    socket().end(1006);
    waits.push(dial.line.retryAt - clock.now());
    await clock.pass(waits.at(-1) ?? 0);
    assert.equal(FakeSocket.made.length, i + 2);
  }
  assert.deepEqual(waits, [249, 499, 999, 1999, 3999, 7999, 15999, 29999, 29999]);
  socket().open();
  dial.live();
  await clock.pass(SETTLED_MS - 1);
  socket().end(1006);
  assert.equal(dial.line.retryAt - clock.now(), 29999, 'a welcome alone says nothing');
  await clock.pass(30000);
  socket().open();
  dial.live();
  await clock.pass(SETTLED_MS);
  socket().end(1006);
  assert.equal(dial.line.retryAt - clock.now(), 249);
});

test('a server that closes right after each welcome is not stormed, whatever its code; nor one that drains at once', async () => {
  for (const code of [1006, 1011, 1012, 4006, 4007, 'drain', 4002]) {
    const { clock, dial } = await dialed({ random: () => 0.999999 });
    const from = FakeSocket.made.length;
    const until = clock.now() + 10000;
    while (clock.now() < until) {
      const made = FakeSocket.made.length;
      socket().open();
      dial.live();
      if (code === 'drain') dial.drain(0);
      else socket().end(Number(code));
      while (FakeSocket.made.length === made) await clock.pass(50);
    }
    assert.ok(FakeSocket.made.length - from <= 6, `${code}: ${FakeSocket.made.length - from}`);
    dial.close();
  }
});

test('1011 is a bug of the server: with back-off from the first try', async () => {
  const { clock, dial } = await dialed({ random: () => 0.999999 });
  socket().open();
  dial.live();
  socket().end(1011);
  assert.deepEqual([dial.line.reason, dial.line.retryAt - clock.now()], ['internal', 499]);
});

test('each close code does what section 10 says', async () => {
  const cases: [number, string, string][] = [
    [1012, 'offline', 'restart'],
    [4004, 'stopped', 'replaced'],
    [4005, 'stopped', 'too_many_devices'],
    [4000, 'stopped', 'protocol'],
    [1009, 'stopped', 'protocol'],
    [4006, 'offline', 'slow_consumer'],
    [4008, 'offline', 'rate_limited'],
    [4009, 'offline', 'overloaded'],
    [4777, 'offline', 'lost'],
  ];
  for (const [code, state, reason] of cases) {
    const { clock, dial } = await dialed();
    socket().open();
    dial.live();
    socket().end(code);
    assert.deepEqual([dial.line.state, dial.line.reason], [state, reason], String(code));
    if (code === 4008) assert.equal(dial.line.retryAt - clock.now(), 60000);
    if (code === 4009) assert.ok(dial.line.retryAt > clock.now());
    const made = FakeSocket.made.length;
    await clock.pass(61000);
    assert.equal(FakeSocket.made.length > made, state === 'offline', String(code));
    dial.close();
  }
});

test('4004 stays until the user acts', async () => {
  const { dial } = await dialed();
  socket().open();
  dial.live();
  socket().end(4004);
  dial.wake();
  assert.equal(FakeSocket.made.length, 1);
  dial.connect();
  await settle();
  assert.equal(FakeSocket.made.length, 2);
});

test('a refused token is renewed once silently; refused again, the user must act', async () => {
  const asked: (string | null)[] = [];
  const { clock, dial } = await dialed({
    token: async (renew) => {
      asked.push(renew);
      return 'tok';
    },
  });
  socket().open();
  socket().end(4002);
  await clock.pass(AT_ONCE_MS);
  socket().open();
  socket().end(4002);
  assert.deepEqual(asked, [null, 'token_expired']);
  assert.deepEqual([dial.line.state, dial.line.reason], ['stopped', 'token_expired']);
});

test('another token each time: tried on with back-off, for a key rotation takes a while', async () => {
  let n = 0;
  const { clock, dial } = await dialed({ token: async () => `tok${n++}` });
  for (let i = 0; i < 4; i += 1) {
    socket().open();
    socket().end(4001);
    assert.equal(dial.line.state, 'offline');
    await clock.pass(dial.line.retryAt - clock.now());
  }
  assert.equal(FakeSocket.made.length, 5);
});

test('a provider that hangs: given up, and asked again', async () => {
  let asked = 0;
  const { clock, dial } = await dialed({
    token: () => {
      asked += 1;
      return new Promise(() => {});
    },
  });
  await clock.pass(CONNECT_MS_MAX);
  assert.equal(dial.line.reason, 'token');
  await clock.pass(CONNECT_MS_MAX);
  assert.ok(asked > 1);
});

test('a URL that no WebSocket takes ends it, and says so', async () => {
  const clock = new TestClock(1000);
  const Refusing = class extends FakeSocket {
    constructor() {
      super('', '');
      throw new SyntaxError('bad');
    }
  };
  const none = () => {};
  const parts = {
    url: 'nonsense',
    clock,
    random: () => 0,
    token: async () => 't',
    onOpen: none,
    onFrame: none,
    onDown: none,
    onLine: none,
    onTime: none,
  };
  const dial = new Dialer({ ...parts, WebSocket: Refusing });
  dial.connect();
  await settle();
  assert.deepEqual([dial.line.state, dial.line.reason], ['stopped', 'bad_url']);
});

test('no token stops; a token that cannot be had now is tried again', async () => {
  const { dial } = await dialed({ token: async () => null });
  assert.deepEqual(dial.line, { state: 'stopped', reason: 'unauthorized', retryAt: 0 });
  let tries = 0;
  const other = await dialed({
    token: async () => {
      tries += 1;
      throw new Error('offline');
    },
  });
  await other.clock.pass(8000);
  assert.ok(tries > 2);
  assert.equal(FakeSocket.made.length, 0);
});

test('drain: still answered here until its delay is over, then another connection', async () => {
  const { clock, dial, heard } = await dialed();
  socket().open();
  dial.live();
  dial.drain(2300);
  socket().say({ t: 'entry' });
  assert.ok(heard.some((one) => (one as Json).t === 'entry'));
  socket().end(1012);
  dial.wake();
  await clock.pass(2299);
  assert.equal(FakeSocket.made.length, 1);
  await clock.pass(1);
  assert.equal(FakeSocket.made.length, 2);
});

test('a connection that never gets its welcome is given up; each page of one counts as progress', async () => {
  const { clock, dial } = await dialed();
  socket().open();
  for (let i = 0; i < 5; i += 1) {
    await clock.pass(CONNECT_MS_MAX - 1);
    dial.progress();
  }
  assert.equal(FakeSocket.made.length, 1);
  await clock.pass(CONNECT_MS_MAX + AT_ONCE_MS);
  assert.equal(FakeSocket.made.length, 2);
});

test('waking up: a waiting line tries at once, a live one asks for a sign of life', async () => {
  const { clock, dial } = await dialed({ random: () => 0.9 });
  socket().open();
  dial.live();
  dial.wake();
  assert.equal(socket().sent.at(-1)?.t, 'ping');
  await clock.pass(PROBE_MS_MAX + AT_ONCE_MS);
  assert.equal(FakeSocket.made.length, 2, 'no sign of life: another connection');
  socket().end();
  socket().end();
  assert.equal(dial.line.state, 'offline');
  const made = FakeSocket.made.length;
  dial.wake();
  await settle();
  assert.equal(FakeSocket.made.length, made + 1);
});

test('what began in an earlier try is too late: a slow token, an old socket', async () => {
  let give = (_: string): void => {};
  const { dial, heard } = await dialed({
    token: () =>
      new Promise((resolve) => {
        give = resolve;
      }),
  });
  dial.close();
  give('late');
  await settle();
  assert.equal(FakeSocket.made.length, 0);
  assert.ok(!heard.some((one) => String(one).startsWith('open')));
});

test('a token that is refused and replaced each time: the line says why', async () => {
  let n = 0;
  const { dial } = await dialed({ token: async () => `tok${n++}` });
  dial.tokenRefused('unauthorized', 'it has no `exp`');
  assert.deepEqual([dial.line.state, dial.line.reason, dial.line.msg], ['offline', 'unauthorized', 'it has no `exp`']);
});

test('a provider that throws: the line tells what', async () => {
  const { dial } = await dialed({ token: () => Promise.reject(new Error('no token: 502')) });
  assert.deepEqual([dial.line.state, dial.line.reason, dial.line.msg], ['offline', 'token', 'no token: 502']);
});
