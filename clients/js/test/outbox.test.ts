/** What waits to be said: in order, once, whatever is answered. */

import assert from 'node:assert/strict';
import { test } from 'vitest';
import { IN_FLIGHT_MAX, OUTBOX_ITEMS_MAX, Outbox, type OutboxItem, WINDOW_MAX } from '../src/outbox.js';
import { restore } from '../src/snapshot.js';
import { type Dice, seeds, withSeed } from './dice.js';
import { draft, uuid } from './fakes.js';

function filled(count: number, peer = 'bob') {
  const outbox = new Outbox();
  for (let i = 0; i < count; i += 1) outbox.add(draft({ peer, cid: `c${i}`, body: `m${i}`, at: i }));
  return outbox;
}
type Out = ReturnType<Outbox['next']>;
const cids = (list: Out) => list.map(({ item }) => item.cid);

/** What goes out, as items. */
function sent(outbox: Outbox, now: number): [OutboxItem, OutboxItem, OutboxItem, ...OutboxItem[]] {
  return outbox.next(now).map(({ item }) => item) as [OutboxItem, OutboxItem, OutboxItem];
}

test('sends in order, as deep as the window, and the rest as answers come', () => {
  const outbox = filled(WINDOW_MAX + 2);
  assert.equal(cids(outbox.next(0)).length, WINDOW_MAX);
  assert.deepEqual(outbox.next(0), []);
  outbox.settle('c0');
  assert.deepEqual(cids(outbox.next(0)), [`c${WINDOW_MAX}`]);
});

test('nothing is sent to nobody', () => {
  const outbox = new Outbox();
  for (const peer of ['', null, undefined, 3] as string[]) assert.equal(outbox.add(draft({ peer })), null);
  assert.deepEqual([outbox.size, outbox.all()], [0, []]);
});

test('the first try has no retry, every later one has', () => {
  const outbox = filled(1);
  assert.equal(outbox.next(0)[0]?.retry, false);
  outbox.disconnected();
  assert.equal(outbox.next(0)[0]?.retry, true);
});

test('after a refusal: waits as told, starts again with the refused one, alone, in order', () => {
  const outbox = filled(3);
  const [first, second, third] = sent(outbox, 0);
  assert.equal(outbox.refuse(first, { code: 'rate_limited', retry_ms: 1000 }, 0), 'again');
  assert.equal(outbox.refuse(second, { code: 'blocked', cid: 'c0' }, 0), 'again');
  assert.equal(outbox.refuse(third, { code: 'blocked', cid: 'c0' }, 0), 'again');
  assert.deepEqual(outbox.next(999), []);
  const at = outbox.wakeAt(0);
  assert.ok(at !== null && at > 1000 && at < 1200);
  assert.deepEqual(cids(outbox.next(at)), ['c0']);
  outbox.settle('c0');
  assert.deepEqual(cids(outbox.next(at)), ['c1', 'c2']);
});

test('a rate limit holds for all conversations, another refusal for its own', () => {
  const outbox = filled(1);
  outbox.add(draft({ peer: 'carol', cid: 'x' }));
  const [bobs, carols] = sent(outbox, 0);
  outbox.refuse(bobs, { code: 'overloaded', retry_ms: 500 }, 0);
  outbox.disconnected();
  assert.equal(outbox.next(0).length, 2);
  outbox.refuse(bobs, { code: 'rate_limited', retry_ms: 500 }, 0);
  outbox.refuse(carols, { code: 'unavailable', retry_ms: 10 }, 0);
  assert.deepEqual(outbox.next(300), []);
});

test('an error without retry_ms fails the item and keeps the words', () => {
  const outbox = filled(2);
  const [first] = sent(outbox, 0);
  assert.equal(outbox.refuse(first, { code: 'too_long', msg: 'no' }, 0), 'failed');
  assert.deepEqual(
    outbox.of('bob').map(({ cid, state }) => [cid, state]),
    [
      ['c0', 'failed'],
      ['c1', 'sent'],
    ],
  );
  assert.equal(outbox.size, 2);
  assert.ok(outbox.canDiscard(first));
  outbox.discard('c0');
  assert.equal(outbox.size, 1);
});

test('blocked by a cid that is not here: give it up, then go on; and without a name: no busy loop', () => {
  const outbox = filled(1);
  const [item] = sent(outbox, 0);
  assert.equal(outbox.refuse(item, { code: 'blocked', cid: 'gone' }, 0), 'skip');
  assert.deepEqual(outbox.next(100), []);
  assert.deepEqual(cids(outbox.next(outbox.wakeAt(0) ?? 0)), ['c0']);
  assert.equal(outbox.refuse(item, { code: 'blocked' }, 1000), 'again');
  assert.deepEqual(outbox.next(1000), []);
});

test('blocked by one that stands behind it, which no sound server says: no busy loop', () => {
  const outbox = filled(2);
  const [first, second] = sent(outbox, 0);
  outbox.refuse(first, { code: 'blocked', cid: second.cid }, 0);
  outbox.refuse(second, { code: 'blocked', cid: first.cid }, 0);
  assert.deepEqual(outbox.next(100), []);
  assert.deepEqual(cids(outbox.next(outbox.wakeAt(100) ?? 0)), ['c0']);
});

test('what may have been done cannot be discarded, what was surely not can', () => {
  const outbox = filled(1);
  const [item] = sent(outbox, 0);
  assert.equal(outbox.discard('c0'), 'kept');
  assert.equal(outbox.size, 1);
  outbox.refuse(item, { code: 'unavailable', retry_ms: 1 }, 0);
  assert.equal(outbox.canDiscard(item), false);
  outbox.next(1000);
  outbox.refuse(item, { code: 'rate_limited', retry_ms: 1 }, 0);
  assert.equal(outbox.discard('c0'), 'skip', 'the server has to be told');
  assert.equal(outbox.size, 0);
});

test('oks of before a refusal let nothing overtake what has no answer yet', () => {
  const outbox = filled(5);
  const items = sent(outbox, 0);
  outbox.refuse(items[3] as OutboxItem, { code: 'overloaded', retry_ms: 100 }, 0);
  for (const n of [0, 1, 2]) outbox.settle(`c${n}`);
  outbox.add(draft({ cid: 'c5' }));
  assert.deepEqual(outbox.next(1000), [], 'c4 is still to be refused');
  outbox.refuse(items[4] as OutboxItem, { code: 'blocked', cid: 'c3' }, 1000);
  assert.deepEqual(cids(outbox.next(1000)), ['c3']);
  outbox.settle('c3');
  assert.deepEqual(cids(outbox.next(1000)), ['c4', 'c5']);
});

test('after a refusal nothing goes out before all that was on its way is answered', () => {
  const outbox = filled(3);
  const [first, second, third] = sent(outbox, 0);
  outbox.refuse(first, { code: 'rate_limited', retry_ms: 100 }, 0);
  outbox.refuse(second, { code: 'blocked', cid: first.cid }, 0);
  assert.deepEqual(outbox.next(1000), []);
  outbox.refuse(third, { code: 'blocked', cid: first.cid }, 1000);
  assert.deepEqual(
    outbox.next(1000).map(({ item }) => item),
    [first],
  );
});

test('another epoch keeps messages, and fails edits and deletes that name a seq alone', () => {
  const outbox = filled(2);
  outbox.add(draft({ cid: 'e', kind: 'edit', ref: 3 }));
  outbox.add(draft({ cid: 'd', kind: 'delete', ref: 3, body: null }));
  assert.deepEqual(
    outbox.newEpoch().map(({ cid }) => cid),
    ['e', 'd'],
  );
  assert.deepEqual(
    outbox.of('bob').map(({ cid, code }) => [cid, code]),
    [
      ['e', 'epoch_changed'],
      ['d', 'epoch_changed'],
      ['c0', null],
      ['c1', null],
    ],
  );
});

test('another epoch keeps changes by cid, which name no place any more; also over storage', () => {
  const outbox = filled(1);
  outbox.add(draft({ cid: 'e', kind: 'edit', ref: 3, refcid: 'm' }));
  assert.deepEqual(outbox.newEpoch(), []);
  const other = new Outbox();
  restore(other, new Map([['o/bob', outbox.all()]]));
  assert.deepEqual(
    other.next(0).map(({ item: { cid, ref, refcid } }) => [cid, ref, refcid]),
    [
      ['c0', null, null],
      ['e', null, 'm'],
    ],
  );
});

test('saved and restored: same order, tried, failed ones too', () => {
  const outbox = filled(3);
  const [first] = sent(outbox, 0);
  outbox.refuse(first, { code: 'refused', msg: 'no' }, 0);
  const other = new Outbox();
  restore(other, new Map([['o/bob', JSON.parse(JSON.stringify(outbox.all()))]]));
  const items = other.of('bob').map(({ cid, state, body }) => [cid, state, body]);
  assert.deepEqual(items, [
    ['c0', 'failed', 'm0'],
    ['c1', 'queued', 'm1'],
    ['c2', 'queued', 'm2'],
  ]);
  assert.ok(other.next(0).every(({ retry }) => retry));
  assert.equal(other.size, 3);
});

test('there is an end to what it takes', () => {
  const outbox = filled(OUTBOX_ITEMS_MAX);
  assert.equal(outbox.add(draft({ cid: 'z' })), null);
});

test('whatever is answered in whatever order: each leaves once, in order, and the size is right', async () => {
  for (const seed of seeds(60)) await withSeed(seed, (d) => anyAnswers(d));
});

function anyAnswers(d: Dice) {
  const outbox = new Outbox();
  const done = new Map<string, string[]>([
    ['bob', []],
    ['carol', []],
  ]);
  const added = new Map<string, string[]>([
    ['bob', []],
    ['carol', []],
  ]);
  const blockedBy = new Map<OutboxItem, string>();
  let flying: OutboxItem[] = [];
  let now = 0;
  for (let step = 0; step < 400; step += 1) {
    const roll = d.below(10);
    if (roll < 3 && step < 300) {
      const peer = d.pick(['bob', 'carol']);
      const cid = uuid();
      if (outbox.add(draft({ peer, cid, at: now }))) added.get(peer)?.push(cid);
    } else if (roll < 5) flying.push(...outbox.next(now).map(({ item }) => item));
    else if (roll < 9 && flying.length > 0) {
      const peer = d.pick(flying).peer;
      const item = flying.find((one) => one.peer === peer) as OutboxItem; // answers of one conversation come in order
      flying = flying.filter((one) => one !== item);
      const blocked = blockedBy.get(item);
      if (blocked) outbox.refuse(item, { code: 'blocked', cid: blocked }, now);
      else if (d.chance(0.3)) {
        outbox.refuse(item, { code: 'overloaded', retry_ms: d.below(50) }, now);
        for (const other of flying) if (other.peer === peer) blockedBy.set(other, item.cid);
      } else {
        outbox.settle(item.cid);
        done.get(peer)?.push(item.cid);
      }
      blockedBy.delete(item);
    } else if (d.chance(0.1)) {
      blockedBy.clear();
      flying = [];
      outbox.disconnected();
    }
    now += d.below(30);
  }
  outbox.disconnected();
  for (let i = 0; i < 2000 && outbox.size > 0; i += 1, now += 100) {
    for (const { item } of outbox.next(now)) {
      outbox.settle(item.cid);
      done.get(item.peer)?.push(item.cid);
    }
  }
  for (const peer of ['bob', 'carol']) assert.deepEqual(done.get(peer), added.get(peer));
}

test('over all conversations no more is on its way than the server reads in one go', () => {
  const outbox = new Outbox();
  for (let i = 0; i < 20; i += 1) for (let n = 0; n < 9; n += 1) outbox.add(draft({ peer: `u${i}`, cid: `${i}-${n}` }));
  assert.equal(outbox.next(0).length, IN_FLIGHT_MAX);
  assert.equal(outbox.next(0).length, 0);
  outbox.settle('0-0');
  assert.deepEqual(cids(outbox.next(0)), ['0-8']);
});

test('what was stored comes before what was written since, and all of it, however much', () => {
  const stored = filled(300).all();
  const more = filled(300, 'carol')
    .all()
    .map((item) => ({ ...item, cid: `d${item.cid}` }));
  const outbox = new Outbox();
  outbox.add(draft({ cid: 'typed' }));
  restore(outbox, new Map([['o/x', [...stored, ...more, ...stored]]]));
  const order = outbox.of('bob').map(({ cid }) => cid);
  assert.deepEqual([order.length, order[0], order.at(-1), outbox.of('carol').length], [301, 'c0', 'typed', 300]);
});

test('a cid that is here already is the same item', () => {
  const outbox = filled(2);
  assert.equal(outbox.add(draft({ cid: 'c1', body: 'other' }))?.body, 'm1');
  assert.equal(outbox.size, 2);
});

test('no wait is longer than an hour, whatever the server names', () => {
  const outbox = filled(1);
  const [item] = sent(outbox, 0);
  outbox.refuse(item, { code: 'overloaded', retry_ms: 1e13 }, 0);
  const at = outbox.wakeAt(0);
  assert.ok(at !== null && at > 3_599_000 && at < 3_601_000);
});
