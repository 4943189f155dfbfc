/** Whatever the other side says: nothing throws, what is shown stays well-formed, and the next good connection works. */

import assert from 'node:assert/strict';
import fc from 'fast-check';
import { test } from 'vitest';
import { ChatClient } from '../src/index.js';
import { entry, FakeClock, FakeSocket, item, type Json, settle, uuid, WELCOME } from './fakes.js';

/** `FUZZ=100000` for the long run. */
const RUNS = Number(process.env.FUZZ ?? 400);

const SAMPLES: Json[] = [
  { ...WELCOME, conversations: [item({ head: 5 }), item({ c: '13', peer: 'carol', head: 2 })] },
  { ...WELCOME, epoch: 'e2', conversations: [item({ head: 1, reset: true })], more: true },
  { ...WELCOME, user: 'mallory' },
  { t: 'welcome', id: 1, conversations: [item({ head: 9, page: true })], more: false, since: 's2' },
  entry(6),
  entry(7, { kind: 'edit', ref: 6 }),
  entry(8, { kind: 'delete', ref: 6, body: undefined }),
  entry(9, { kind: 'reaction', ref: 6 }),
  entry(6, { from: 'alice', to: 'bob', cid: uuid() }),
  entry(1, { c: '77', from: 'dora' }),
  { t: 'receipt', c: '12', from: 'bob', to: 'alice', delivered: 5, read: 4 },
  { t: 'receipt', c: '12', from: 'alice', to: 'bob', delivered: 5, read: 4 },
  { t: 'presence', user: 'bob', state: 'online', v: 3 },
  { t: 'typing', c: '12', from: 'bob', to: 'alice' },
  { t: 'notice', kind: 'drain', retry_ms: 100 },
  { t: 'later_than_us', c: '12', what: [1] },
  ...[1, 2, 3, 4, 5, 6].flatMap((id): Json[] => [
    { t: 'ok', id, c: '12', seq: 6, ts: 7 },
    { t: 'ok', id, c: '12', seq: 6, ts: 7, dup: true },
    { t: 'ok', id, delivered: 5, read: 5 },
    { t: 'ok', id, presence: [{ user: 'bob', state: 'away', v: 9 }] },
    {
      t: 'ok',
      id,
      c: '12',
      entries: [
        { ...entry(4), t: undefined },
        { ...entry(5), t: undefined },
      ],
      more: true,
      head: 5,
      floor: 1,
    },
    { t: 'err', id, code: 'rate_limited', retry_ms: 300 },
    { t: 'err', id, code: 'blocked', cid: uuid() },
    { t: 'err', id, code: 'unauthorized', msg: 'no' },
    { t: 'pong', id, ts: 1 },
  ]),
];

/** A value in the place of another, at any depth. */
const anyValue = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.constantFrom<unknown>(-1, 1.5, 2 ** 60, '', '__proto__', null, {}, [], true, '12', 6),
);
const path = fc.array(fc.nat(20), { minLength: 1, maxLength: 4 });
const mutated = fc
  .tuple(fc.constantFrom(...SAMPLES), fc.array(fc.tuple(path, anyValue), { maxLength: 3 }))
  .map(([sample, changes]) => {
    const frame = structuredClone(sample);
    for (const [at, value] of changes) change(frame, at, value);
    return JSON.stringify(frame);
  });
const step = fc.oneof(
  { weight: 8, arbitrary: mutated },
  { weight: 1, arbitrary: fc.oneof(fc.string(), fc.json()) },
  { weight: 2, arbitrary: fc.constantFrom('!send', '!read', '!history', '!cut', '!pass', '!welcome') },
);

function change(frame: Json, [at = 0, ...deeper]: number[], value: unknown): void {
  const keys = Object.keys(frame);
  const key = keys[at % keys.length];
  if (key === undefined) return;
  const inner = frame[key];
  if (deeper.length > 0 && inner !== null && typeof inner === 'object') change(inner as Json, deeper, value);
  else frame[key] = value;
}

async function meet(client: ChatClient, clock: FakeClock, what: string): Promise<void> {
  const line = FakeSocket.made.at(-1);
  if (what === '!send') void client.send('bob', 'x');
  else if (what === '!read') client.read('bob');
  else if (what === '!history') void Promise.resolve(client.history('bob')).catch(() => {});
  else if (what === '!cut') line?.end(1006);
  else if (what === '!pass') await clock.pass(500);
  else if (what === '!welcome') {
    line?.open();
    line?.say({ ...WELCOME, conversations: [item({ head: 5 })] });
  } else line?.say(what);
}

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
    const seqs = shown.map(({ seq }) => seq).filter((seq) => seq !== null);
    assert.deepEqual(
      seqs,
      [...new Set(seqs)].sort((a, b) => a - b),
      'in order, once',
    );
    for (const { body, from, seq } of shown) {
      assert.ok(body === null || typeof body === 'string');
      assert.ok(typeof from === 'string');
      assert.ok(seq === null || Number.isSafeInteger(seq));
    }
    assert.equal(new Set(shown.map(({ key }) => key)).size, shown.length, 'keys differ');
  }
  for (const { state } of outbox.getSnapshot()) assert.ok(state === 'sending' || state === 'failed');
}

test('malformed, unknown and untimely frames never throw, and what is shown stays what it says it is', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 25 }), async (steps) => {
      FakeSocket.made = [];
      const clock = new FakeClock();
      const client = new ChatClient({
        url: 'ws://x/ws',
        token: async () => uuid(),
        webSocket: FakeSocket,
        device: 'd',
        clock,
        random: () => 0,
      });
      const errors: unknown[] = [];
      client.on('error', (error) => errors.push(error));
      await client.start();
      await settle();
      await meet(client, clock, '!welcome');
      for (const what of steps) {
        await meet(client, clock, what);
        checkShown(client);
      }
      assert.deepEqual(errors, []);
      // The next server is a good one.
      await client.stop();
      await client.start();
      await settle();
      FakeSocket.made.at(-1)?.open();
      FakeSocket.made.at(-1)?.say({ ...WELCOME, user: client.user || 'alice', epoch: 'good' });
      assert.equal(client.stores.line.getSnapshot().state, 'online');
    }),
    { numRuns: RUNS },
  );
}, 600_000);
