/** The stream of entries, and the small parts that everything is told by. */

import assert from 'node:assert/strict';
import { test } from 'vitest';
import { Emitter } from '../src/emitter.js';
import type { Entry, HistoryPage } from '../src/frames.js';
import { paged } from '../src/paged.js';
import { EntryStream, type Gap } from '../src/stream.js';
import { same, Topic } from '../src/topic.js';
import { settle } from './fakes.js';

const made = (seq: number): Entry => ({ c: '12', seq, ts: seq, from: 'bob', to: 'alice', kind: 'message', body: 'x' });
const gap = (after: number, head: number): Gap => ({ peer: 'bob', c: '12', after, head });

function stream(page: (gap: Gap) => Promise<HistoryPage>) {
  const ended: string[] = [];
  const left: number[] = [];
  return {
    ended,
    left,
    entries: new EntryStream(
      page,
      (entry: Entry) => entry,
      ({ after, head }) => left.push(head - after),
      () => ended.push('ended'),
    ),
  };
}

test('a gap is paged through before what came behind it, and not beyond its end', async () => {
  const asked: number[] = [];
  const { entries } = stream(async ({ after }) => {
    asked.push(after);
    return { entries: [after + 1, after + 2].map(made), more: true, head: 9, floor: 1 };
  });
  entries.push(made(1));
  entries.push(gap(1, 4));
  entries.push(made(5));
  const seqs: number[] = [];
  for (let i = 0; i < 5; i += 1) seqs.push((await entries.next()).value.seq);
  assert.deepEqual(
    [seqs, asked],
    [
      [1, 2, 3, 4, 5],
      [1, 3],
    ],
  );
});

test('a gap shrinks by each entry that was taken, and is gone with the last one', async () => {
  const { entries, left } = stream(async ({ after }) => ({
    entries: [after + 1, after + 2].map(made),
    more: after < 3,
    head: 9,
    floor: 1,
  }));
  entries.push(gap(1, 6)); // the page after 3 is the last: nothing of 6 is kept
  assert.deepEqual(entries.gaps, [gap(1, 6)]);
  for (let i = 0; i < 3; i += 1) await entries.next();
  assert.deepEqual([left, entries.gaps], [[4, 3, 2], [gap(4, 6)]]);
  await entries.next();
  assert.deepEqual([left, entries.gaps], [[4, 3, 2, 0], []]);
});

test('a page that comes after another epoch began is not shown', async () => {
  let answer: (page: HistoryPage) => void = () => {};
  const { entries } = stream(
    () =>
      new Promise((resolve) => {
        answer = resolve;
      }),
  );
  entries.push(gap(1, 4));
  const next = entries.next();
  await settle();
  entries.reset();
  entries.push(made(1));
  answer({ entries: [made(2)], more: false, head: 4, floor: 1 });
  assert.equal((await next).value.seq, 1);
  entries.push(gap(1, 3));
  const second = entries.next();
  await settle();
  answer({ entries: [made(3)], more: false, head: 3, floor: 1 });
  assert.equal((await second).value.seq, 3);
});

test('who waits is woken by an entry, and by the end; who leaves says so', async () => {
  const { entries, ended } = stream(async () => ({ entries: [], more: false, head: 0, floor: 1 }));
  const first = entries.next();
  entries.push(made(1));
  assert.equal((await first).value.seq, 1);
  const second = entries.next();
  entries.end();
  assert.equal((await second).done, true);
  await entries.return();
  assert.deepEqual(ended, ['ended']);
});

test('a gap that nothing fills is passed over, and another epoch forgets gaps', async () => {
  const { entries } = stream(async () => ({ entries: [], more: false, head: 0, floor: 1 }));
  entries.push(gap(1, 4));
  entries.push(made(5));
  assert.equal((await entries.next()).value.seq, 5);
  entries.push(gap(5, 9));
  entries.push(made(10));
  entries.reset();
  assert.equal((await entries.next()).value.seq, 10);
});

test('paged: nothing is asked before it is wanted; awaited it is one page', async () => {
  let asked = 0;
  const pages = paged(
    async () => {
      asked += 1;
      return [1, 2];
    },
    (page) => page,
    ([first]) => (first === 1 ? async () => [3] : null),
  );
  assert.equal(asked, 0);
  assert.deepEqual(await pages, [1, 2]);
  const all: number[] = [];
  for await (const one of pages) all.push(one);
  assert.deepEqual(all, [1, 2, 3]);
});

test('a topic tells once a microtask, and only what is another', async () => {
  let value = { a: 1 };
  let told = 0;
  const topic = new Topic<{ a: number }>(
    (old) => same(old, { ...value }),
    () => {},
  );
  const end = topic.subscribe(() => {
    told += 1;
  });
  topic.touch();
  topic.touch();
  await settle();
  assert.equal(told, 0, 'nothing is another');
  const before = topic.getSnapshot();
  value = { a: 2 };
  topic.touch();
  assert.notEqual(topic.getSnapshot(), before, 'read before it was told');
  topic.touch();
  await settle();
  assert.equal(told, 1);
  end();
  value = { a: 3 };
  topic.touch();
  await settle();
  assert.equal(told, 1);
});

test('what a listener of errors throws goes no further round', () => {
  const emitter = new Emitter<{ error: unknown; x: number }>();
  const reported: unknown[] = [];
  Object.assign(globalThis, { reportError: (error: unknown) => reported.push(error) });
  emitter.on('error', () => {
    throw new Error('again');
  });
  emitter.on('x', () => {
    throw new Error('first');
  });
  emitter.emit('x', 1);
  assert.deepEqual(
    reported.map((error) => (error as Error).message),
    ['again'],
  );
  Object.assign(globalThis, { reportError: undefined });
});
