import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Log } from '../../chatd/web/log.js';
import { seeds, withSeed } from './fakes.mjs';

// --- the truth: a log, and how its entries stand at a time ----------------------------------------------------------

/** A random log, entries 1..n as they were when they were made. */
function randomLog(d, n) {
  const log = [];
  const alive = [];
  for (let seq = 1; seq <= n; seq += 1) {
    const ref = alive.length > 0 ? d.pick(alive) : 0;
    const roll = ref === 0 ? 0 : d.below(10);
    const made = { seq, ts: 1000 + seq, from: d.pick(['alice', 'bob']) };
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
function standing(log, seq, head) {
  const entry = { ...log[seq - 1] };
  const of = entry.kind === 'message' ? seq : entry.ref;
  const changes = log.slice(0, head).filter(({ ref }) => ref === of);
  const last = changes.at(-1);
  if (entry.kind === 'delete' || !last) return entry;
  entry.body = last.kind === 'delete' ? null : last.body;
  if (entry.kind === 'edit') return entry;
  const edit = changes.filter(({ kind }) => kind === 'edit').at(-1);
  entry.rev = last.seq;
  if (last.kind === 'delete') entry.deleted = last.ts;
  else entry.edited = edit.ts;
  return entry;
}

/** What a reader must end up with. */
function truth(log, floor = 1) {
  return log.filter(({ kind, seq }) => kind === 'message' && seq >= floor).map(({ seq }) => {
    const { body, rev = 0, deleted = null, edited = null } = standing(log, seq, log.length);
    return { seq, body, rev, deleted, edited };
  });
}

const shown = (log) => log.messages().map(({ seq, body, rev, deleted, edited }) => ({ seq, body, rev, deleted, edited }));

function pageBefore(log, before, limit, head, floor = 1) {
  const entries = [];
  let at = Math.min(before - 1, head);
  for (let messages = 0; at >= floor; at -= 1) {
    if (log[at - 1].kind === 'message' && (messages += 1) > limit) break;
    entries.unshift(standing(log, at, head));
  }
  return { entries, more: at >= floor, head, floor };
}

// --- tests ----------------------------------------------------------------------------------------------------------

test('pages, resync, live entries and dups in any order: the log comes out as it stands', async () => {
  for (const seed of seeds(400)) await withSeed(seed, anyOrder);
});

/** A reader that connects at some time, scrolls back with slow answers, loses its connection and resyncs. */
function anyOrder(d) {
  const n = 5 + d.below(60);
  const log = randomLog(d, n);
  const floor = d.chance(0.3) ? 1 + d.below(5) : 1;
  let head = Math.max(floor, d.below(n)); // how far the log is now
  let had = head; // what this connection has pushed
  const reader = new Log();
  reader.listed({ head, floor }, false);
  let slow = []; // answers under way
  for (let step = 0; step < 300; step += 1) {
    const roll = d.below(6);
    if (roll === 0 && head < n) head += 1;
    else if (roll === 1 && had < head) {
      had += 1;
      reader.take(log[had - 1], 'live');
    } else if (roll === 2 && slow.length === 0 && reader.more) slow.push(pageBefore(log, reader.lo ?? Infinity, 1 + d.below(6), head, floor));
    else if (roll === 3 && slow.length > 0) reader.page(slow.pop());
    else if (roll === 4 && d.chance(0.2)) {
      slow = []; // disconnected: what was asked for is not answered
      const kept = d.chance(0.7);
      reader.listed({ head, floor }, kept);
      if (!kept) had = head;
      while (had < head) {
        had += 1;
        if (d.chance(0.2)) reader.take(log[had - 1], 'dup');
        reader.take(standing(log, had, head), 'live');
      }
    } else if (roll === 5 && d.chance(0.2)) reader.trim(1 + d.below(8));
    else if (roll === 5 && d.chance(0.1) && head > 0) reader.take(log[d.below(head)], 'dup');
  }
  for (; had < n; had += 1) reader.take(log[had], 'live');
  for (let i = 0; reader.more; i += 1) {
    assert.ok(i < 200, 'the way back has an end');
    assert.ok(reader.page(pageBefore(log, reader.lo ?? Infinity, 3, n, floor)));
  }
  assert.deepEqual(shown(reader), truth(log, floor));
  assert.equal(reader.changes.size === 0 || [...reader.changes.keys()].every((ref) => ref < floor), true, 'no change of a held message waits');
}

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
  reader.take({ seq: 3, ts: 1, from: 'a', kind: 'message', body: 'x' }, 'live');
  reader.take({ seq: 5, ts: 1, from: 'a', kind: 'message', body: 'y' }, 'live');
  assert.deepEqual([reader.lo, reader.hi, shown(reader).length], [5, 5, 1]);
  assert.equal(reader.page({ entries: [{ seq: 2, ts: 1, from: 'a', kind: 'message', body: 'z' }], more: false, head: 5, floor: 1 }), false);
});

test('an unknown kind is passed over and counts as had', () => {
  const reader = new Log();
  reader.take({ seq: 1, ts: 1, from: 'a', kind: 'message', body: 'x' }, 'live');
  reader.take({ seq: 2, ts: 1, from: 'a', kind: 'reaction', ref: 1, body: '!' }, 'live');
  assert.deepEqual([reader.hi, shown(reader).length, shown(reader)[0].body], [2, 1, 'x']);
});

test('retention: what passed the floor is no longer shown, and nothing older is asked for', () => {
  const reader = new Log();
  for (let seq = 1; seq <= 9; seq += 1) reader.take({ seq, ts: 1, from: 'a', kind: 'message', body: 'x' }, 'live');
  reader.listed({ head: 9, floor: 7 }, true);
  assert.deepEqual([shown(reader).map(({ seq }) => seq), reader.more], [[7, 8, 9], false]);
  reader.listed({ head: 30, floor: 20 }, true);
  reader.take({ seq: 20, ts: 1, from: 'a', kind: 'message', body: 'x' }, 'live');
  assert.deepEqual([shown(reader).map(({ seq }) => seq), reader.more], [[20], false]);
});

test('an edit whose message has passed retention leaves the held text as it is', () => {
  const log = new Log();
  log.take({ seq: 1, ts: 1001, from: 'bob', kind: 'message', body: 'held', cid: 'c1' }, 'live');
  log.take({ seq: 2, ts: 1002, from: 'bob', kind: 'edit', ref: 1, body: null }, 'live');
  assert.equal(log.messages()[0].body, 'held');
});
