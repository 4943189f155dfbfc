/** What is held of a log: pages and pushes in any order end as the log stands. */

import assert from 'node:assert/strict';
import { test } from 'vitest';
import type { Entry, HistoryPage } from '../src/frames.js';
import { Log } from '../src/log.js';
import { type Dice, seeds, withSeed } from './dice.js';

/** An entry with what a test does not care about. */
function made(seq: number, facts: Partial<Entry> = {}): Entry {
  return { c: '12', seq, ts: seq, from: 'a', to: 'b', kind: 'message', ...facts };
}

// --- the truth: a log, and how its entries stand at a time ----------------------------------------------------------

/** A random log, entries 1..n as they were when they were made. */
function randomLog(d: Dice, n: number): Entry[] {
  const log: Entry[] = [];
  const alive: number[] = [];
  for (let seq = 1; seq <= n; seq += 1) {
    const ref = alive.length > 0 ? d.pick(alive) : 0;
    const roll = ref === 0 ? 0 : d.below(10);
    const made = { c: '12', seq, ts: 1000 + seq, from: d.pick(['alice', 'bob']), to: 'x' };
    if (roll < 5) {
      alive.push(seq);
      log.push({ ...made, kind: 'message', body: `m${seq}`, cid: `c${seq}` });
    } else if (roll < 8) log.push({ ...made, kind: 'edit', ref, body: `e${seq}` });
    else {
      alive.splice(alive.indexOf(ref), 1);
      log.push({ ...made, kind: 'delete', ref });
    }
  }
  return log;
}

/** Entry `seq` as history and resync give it when the log has `head` entries (section 4). */
function standing(log: readonly Entry[], seq: number, head: number): Entry {
  const entry = { ...(log[seq - 1] as Entry) };
  const of = entry.kind === 'message' ? seq : entry.ref;
  const changes = log.slice(0, head).filter(({ ref }) => ref === of);
  const last = changes.at(-1);
  if (entry.kind === 'delete' || !last) return entry;
  entry.body = last.kind === 'delete' ? null : (last.body ?? null);
  if (entry.kind === 'edit') return entry;
  const edit = changes.filter(({ kind }) => kind === 'edit').at(-1);
  entry.rev = last.seq;
  if (last.kind === 'delete') entry.deleted = last.ts;
  else if (edit) entry.edited = edit.ts;
  return entry;
}

/** What a reader must end up with. */
function truth(log: readonly Entry[], floor = 1) {
  return log
    .filter(({ kind, seq }) => kind === 'message' && seq >= floor)
    .map(({ seq }) => {
      const { body, rev = 0, deleted = null, edited = null } = standing(log, seq, log.length);
      return { seq, body, rev, deleted, edited };
    });
}

const shown = (log: Log) =>
  log.messages().map(({ seq, body, rev, deleted, edited }) => ({ seq, body, rev, deleted, edited }));

/** A page tells a text once: with its message if that is in it, or else with the latest edit in it (chatd/chat/history.py). */
function toldOnce(entries: Entry[]): Entry[] {
  const told = new Set(entries.filter(({ kind }) => kind === 'message').map(({ seq }) => seq));
  for (const entry of [...entries].reverse()) {
    if (entry.kind !== 'edit') continue;
    if (told.has(entry.ref ?? 0)) entry.body = null;
    told.add(entry.ref ?? 0);
  }
  return entries;
}

function pageBefore(log: readonly Entry[], before: number, limit: number, head: number, floor = 1): HistoryPage {
  const entries: Entry[] = [];
  let at = Math.min(before - 1, head);
  for (let messages = 0; at >= floor; at -= 1) {
    messages += Number(log[at - 1]?.kind === 'message');
    if (messages > limit) break;
    entries.unshift(standing(log, at, head));
  }
  return { entries: toldOnce(entries), more: at >= floor, head, floor };
}

function pageAfter(log: readonly Entry[], after: number, limit: number, head: number, floor = 1): HistoryPage {
  const entries: Entry[] = [];
  let at = Math.max(after + 1, floor);
  for (let messages = 0; at <= head; at += 1) {
    messages += Number(log[at - 1]?.kind === 'message');
    if (messages > limit) break;
    entries.push(standing(log, at, head));
  }
  return { entries: toldOnce(entries), more: at <= head, head, floor };
}

// --- tests ----------------------------------------------------------------------------------------------------------

test('pages, resync, live entries and dups in any order: the log comes out as it stands', async () => {
  for (const seed of seeds(400)) await withSeed(seed, anyOrder);
});

test('it shows the same however often it was looked at before', async () => {
  for (const seed of seeds(60)) {
    const all: string[] = [];
    await withSeed(seed, (d) => anyOrder(d, (reader) => void all.push(JSON.stringify(reader.messages()))));
    for (const at of [20, 60, 140, 220, 299]) {
      await withSeed(seed, (d) =>
        anyOrder(d, (reader, step) => {
          if (step === at) assert.equal(JSON.stringify(reader.messages()), all[at], `step ${at}`);
        }),
      );
    }
  }
});

test('a dup that is ahead of the run, and what comes before it later, are in order in each look', () => {
  const log = new Log();
  const looks = [1, 5, 2, 3].map((seq) => {
    log.take(made(seq, { body: `m${seq}` }), seq === 5 ? 'dup' : 'live');
    return log.messages().map((one) => one.seq);
  });
  assert.deepEqual(looks, [[1], [1, 5], [1, 2, 5], [1, 2, 3, 5]]);
});

/** A reader that connects at some time, scrolls both ways with slow answers, goes to places far off, loses its connection and resyncs, or stays where it was. */
function anyOrder(d: Dice, look: (reader: Log, step: number) => void = () => {}) {
  const n = 5 + d.below(60);
  const log = randomLog(d, n);
  const floor = d.chance(0.3) ? 1 + d.below(5) : 1;
  let head = Math.max(floor, d.below(n)); // how far the log is now
  let had = head; // what this connection has pushed
  const reader = new Log();
  reader.listed({ head, floor }, false);
  let slow: (() => unknown)[] = []; // answers under way
  for (let step = 0; step < 300; step += 1) {
    const roll = d.below(6);
    if (roll === 0 && head < n) head += 1;
    else if (roll === 1 && had < head) {
      had += 1;
      reader.take(log[had - 1] as Entry, 'live');
    } else if (roll === 2 && slow.length === 0 && d.chance(0.1)) slow.push(leap(reader, log, d, head, floor));
    else if (roll === 2 && slow.length === 0) {
      const limit = 1 + d.below(6);
      const isNewer = reader.isBehind && d.chance(0.5);
      const page = isNewer
        ? pageAfter(log, reader.after, limit, head, floor)
        : pageBefore(log, reader.lo ?? Infinity, limit, head, floor);
      if (isNewer || reader.more) slow.push(() => reader.page(page, isNewer));
    } else if (roll === 3 && slow.length > 0) slow.pop()?.();
    else if (roll === 4 && d.chance(0.2)) {
      slow = []; // disconnected: what was asked for is not answered
      const kept = d.chance(0.6);
      const stays = !kept && d.chance(0.5) && (reader.hi ?? 0) <= head;
      reader.listed({ head, floor }, kept, stays);
      if (!kept) had = head;
      while (had < head) {
        had += 1;
        if (d.chance(0.2)) reader.take(log[had - 1] as Entry, 'dup');
        reader.take(standing(log, had, head), 'live');
      }
    } else if (roll === 5 && d.chance(0.2)) reader.trim(1 + d.below(8));
    else if (roll === 5 && d.chance(0.1) && head > 0) reader.take(log[d.below(head)] as Entry, 'dup');
    look(reader, step);
  }
  for (; had < n; had += 1) reader.take(log[had] as Entry, 'live');
  for (let i = 0; reader.isBehind; i += 1) {
    assert.ok(i < 200, 'the way to the end has one');
    const isAsked = reader.isEndUnknown;
    if (isAsked) reader.end(pageBefore(log, Infinity, 1, n, floor));
    assert.equal(reader.isEndUnknown, false, 'asked for once');
    const last = truth(log, floor).at(-1);
    if (last && last.seq >= (reader.lo ?? 0)) assert.equal(reader.last?.seq, last.seq, 'the last message is known');
    if (isAsked && last && last.seq >= (reader.lo ?? 0)) assert.equal(reader.last?.body, last.body, 'as it stands now');
    assert.ok(reader.page(pageAfter(log, reader.after, 3, n, floor), true));
  }
  for (let i = 0; reader.more; i += 1) {
    assert.ok(i < 200, 'the way back has an end');
    assert.ok(reader.page(pageBefore(log, reader.lo ?? Infinity, 3, n, floor)));
  }
  assert.deepEqual(shown(reader), truth(log, floor));
}

/** To a place in the middle, or to the end. */
function leap(reader: Log, log: readonly Entry[], d: Dice, head: number, floor: number): () => void {
  const isNewer = d.chance(0.6);
  const page = isNewer ? pageAfter(log, d.below(head + 1), 3, head, floor) : pageBefore(log, Infinity, 3, head, floor);
  return () => reader.restart(page, isNewer);
}

test('a run that ends before the log: what comes is told, the last message is known, and pages join it to the end', () => {
  const reader = new Log();
  const message = (seq: number, facts: Partial<Entry> = {}) => made(seq, { body: `m${seq}`, ...facts });
  for (const seq of [1, 2, 3]) reader.take(message(seq), 'live');
  reader.listed({ head: 9, floor: 1 }, false, true);
  assert.deepEqual(
    [reader.hi, reader.apart, reader.isBehind, reader.after],
    [3, true, true, 0],
    'what stays may have changed meanwhile',
  );
  assert.equal(reader.isEndUnknown, true);
  reader.end({ entries: [message(8), made(9, { kind: 'edit', ref: 8, body: 'm8!' })], more: true, floor: 1, head: 9 });
  assert.deepEqual([reader.isEndUnknown, reader.last?.body, reader.hi], [false, 'm8!', 3]);
  reader.take(message(10), 'live');
  reader.take(made(11, { kind: 'edit', ref: 10, body: 'm10!' }), 'live');
  reader.take(made(12, { kind: 'delete', ref: 2 }), 'live');
  assert.deepEqual(
    [reader.last?.body, reader.head, shown(reader).map(({ body }) => body)],
    ['m10!', 12, ['m1', null, 'm3']],
  );
  reader.page(
    {
      entries: [message(1, { body: 'm1!', rev: 5, edited: 5 }), message(2), message(3), message(4)],
      more: true,
      head: 12,
      floor: 1,
    },
    true,
  );
  assert.deepEqual([reader.hi, reader.after, reader.apart, shown(reader)[0]?.body], [4, 4, true, 'm1!']);
  const rest = [5, 6, 7, 8, 9, 10].map((seq) => message(seq));
  reader.page({ entries: rest, more: false, head: 12, floor: 1 }, true);
  assert.deepEqual([reader.apart, reader.after], [true, 10], 'two more are known to exist');
  reader.page(
    {
      entries: [made(11, { kind: 'edit', ref: 10, body: 'm10!' }), made(12, { kind: 'delete', ref: 2 })],
      more: false,
      head: 12,
      floor: 1,
    },
    true,
  );
  assert.deepEqual(
    [reader.apart, reader.isBehind, reader.last?.body, reader.messages().length],
    [false, false, 'm10!', 10],
  );
  reader.take(message(13), 'live');
  assert.equal(reader.hi, 13);
});

test('where nothing but changes lies beyond the run, the last message is in it: asked for once, and shown as it stands', () => {
  const reader = new Log();
  const message = made(1, { body: 'm1' });
  reader.take(message, 'live');
  reader.listed({ head: 2, floor: 1 }, false, true);
  assert.equal(reader.isEndUnknown, true);
  reader.end({
    entries: [{ ...message, body: 'm1!', rev: 2, edited: 2 }, made(2, { kind: 'edit', ref: 1, body: null })],
    more: true,
    floor: 1,
    head: 2,
  });
  assert.deepEqual([reader.isEndUnknown, reader.last?.body, reader.apart], [false, 'm1!', true]);
  reader.listed({ head: 3, floor: 1 }, false, true);
  assert.equal(reader.isEndUnknown, true, 'there is more now');
});

test('the states of one message in any order: the highest rev wins', async () => {
  for (const seed of seeds(100)) {
    await withSeed(seed, (d) => {
      const log = randomLog(d, 12);
      const all = log.flatMap((entry) => [entry, standing(log, entry.seq, entry.seq + d.below(12 - entry.seq + 1))]);
      const reader = new Log();
      reader.lo = 1;
      reader.hi = 12;
      for (const entry of all.sort(() => d.random() - 0.5)) reader.take(entry, 'dup');
      assert.deepEqual(shown(reader), truth(log));
    });
  }
});

test('a hole on one connection never joins two runs', () => {
  const reader = new Log();
  reader.take(made(3, { kind: 'message', body: 'x' }), 'live');
  reader.take(made(5, { kind: 'message', body: 'y' }), 'live');
  assert.deepEqual([reader.lo, reader.hi, shown(reader).length], [5, 5, 1]);
  assert.equal(
    reader.page({ entries: [made(2, { kind: 'message', body: 'z' })], more: false, head: 5, floor: 1 }),
    false,
  );
});

test('an unknown kind is passed over and counts as had', () => {
  const reader = new Log();
  reader.take(made(1, { kind: 'message', body: 'x' }), 'live');
  reader.take(made(2, { kind: 'reaction', ref: 1, body: '!' }), 'live');
  assert.deepEqual([reader.hi, shown(reader).length, shown(reader)[0]?.body], [2, 1, 'x']);
});

test('retention: what passed the floor is no longer shown, and nothing older is asked for', () => {
  const reader = new Log();
  for (let seq = 1; seq <= 9; seq += 1) reader.take(made(seq, { body: 'x' }), 'live');
  reader.listed({ head: 9, floor: 7 }, true);
  assert.deepEqual([shown(reader).map(({ seq }) => seq), reader.more], [[7, 8, 9], false]);
  reader.listed({ head: 30, floor: 20 }, true);
  reader.take(made(20, { kind: 'message', body: 'x' }), 'live');
  assert.deepEqual([shown(reader).map(({ seq }) => seq), reader.more], [[20], false]);
});

test('an edit whose message has passed retention leaves the held text as it is', () => {
  const log = new Log();
  log.take(made(1, { kind: 'message', body: 'held', cid: 'c1' }), 'live');
  log.take(made(2, { kind: 'edit', ref: 1, body: null }), 'live');
  assert.equal(log.messages()[0]?.body, 'held');
});
