/** How far a device has got, and what a reconnect says about it. */

import assert from 'node:assert/strict';
import { test } from 'vitest';
import type { Item } from '../src/frames.js';
import { Cursors, Places } from '../src/places.js';
import { CURSORS_MAX, HELLO_LIST_BYTES_MAX } from '../src/wire.js';
import { item } from './fakes.js';

function at(seq: number, facts: Partial<Item> = {}) {
  const places = new Places();
  places.enter('e1');
  places.list(item({ head: seq, ...facts }));
  places.since = 's';
  return places;
}

test('a step is new, known or a jump', () => {
  const places = at(5);
  assert.equal(places.step('12', 'bob', 5, 0), 'known');
  assert.equal(places.step('12', 'bob', 7, 0), 'jump');
  assert.equal(places.step('12', 'bob', 6, 0), 'new');
  assert.equal(places.step('99', 'carol', 1, 0), 'new');
  assert.equal(places.of.get('12')?.seq, 6);
});

test('resume names epoch, places and mark; nothing before the first welcome', () => {
  assert.deepEqual(new Places().resume(), {});
  assert.deepEqual(at(5).resume(), { epoch: 'e1', cursors: { 12: 5 }, since: 's' });
});

test('resume names the recent ones only, within its bytes', () => {
  const places = new Places();
  places.enter('e1');
  for (let i = 0; i < 1000; i += 1) places.list(item({ c: String(i), peer: `u${i}`, head: 1, ts: i }));
  const { cursors } = places.resume();
  assert.equal(Object.keys(cursors ?? {}).length, CURSORS_MAX);
  assert.ok(cursors && '999' in cursors && !('0' in cursors));
  assert.ok(JSON.stringify(cursors).length <= HELLO_LIST_BYTES_MAX / 2);
});

test('listed: goes on where the place was named and the server follows it up', () => {
  const places = at(5);
  places.resume();
  assert.equal(places.list(item({ head: 9 })), true);
  assert.equal(places.of.get('12')?.seq, 5);
  assert.equal(places.step('12', 'bob', 6, 0), 'new');
});

test('listed: starts at the floor where retention took what lay between', () => {
  const places = at(5);
  places.resume();
  assert.equal(places.list(item({ head: 30, floor: 20 })), true);
  assert.equal(places.step('12', 'bob', 20, 0), 'new');
});

test('listed: anew if told to page or to reset, if beyond the head, if it moved and was not named', () => {
  const cases: [Partial<Item>, boolean][] = [
    [{ head: 9, page: true }, true],
    [{ head: 9, reset: true }, true],
    [{ head: 3 }, true],
    [{ head: 9 }, false],
  ];
  for (const [facts, named] of cases) {
    const places = at(5);
    if (named) places.resume();
    assert.equal(places.list(item(facts)), false, JSON.stringify(facts));
    assert.equal(places.of.get('12')?.seq, facts.head);
  }
});

test('listed: a conversation that was not named and has not moved goes on', () => {
  assert.equal(at(5).list(item({ head: 5 })), true);
});

test('the mark is given back only with all that is still missing of what it listed', () => {
  const places = at(5);
  places.resume();
  places.list(item({ head: 9 }));
  places.step('12', 'bob', 6, 0);
  for (let i = 0; i < 2 * CURSORS_MAX; i += 1) places.list(item({ c: `n${i}`, peer: `u${i}`, head: 1, ts: 100 + i }));
  assert.deepEqual(
    [places.resume().since, places.named['12']],
    ['s', 6],
    'what was cut short comes before what is more recent',
  );
  for (let i = 0; i < CURSORS_MAX; i += 1) Object.assign(places.of.get(`n${i}`) ?? {}, { head: 2 });
  const { since, cursors } = places.resume();
  assert.deepEqual(
    [since, Object.keys(cursors ?? {}).length],
    [undefined, CURSORS_MAX],
    'not all fit: everything is to be listed',
  );
});

test('what jumped is named by the next hello, before what is more recent', () => {
  const places = at(5, { ts: 1 });
  for (let i = 0; i < CURSORS_MAX; i += 1) places.list(item({ c: `n${i}`, peer: `u${i}`, head: 1, ts: 100 + i }));
  assert.ok(!('12' in (places.resume().cursors ?? {})));
  assert.equal(places.step('12', 'bob', 7, 0), 'jump');
  assert.equal(places.resume().cursors?.['12'], 5);
  places.list(item({ head: 7, ts: 1 }));
  assert.deepEqual([places.step('12', 'bob', 6, 0), places.step('12', 'bob', 7, 0)], ['new', 'new']);
  assert.ok(!('12' in (places.resume().cursors ?? {})), 'nothing of it is missing any more');
});

test('another epoch drops everything', () => {
  const places = at(5);
  assert.equal(places.enter('e1'), false);
  assert.equal(places.enter('e2'), true);
  assert.deepEqual([places.of.size, places.names.size, places.since], [0, 0, null]);
});

test('cursors: coalesced, forward only, read moves delivered along', () => {
  const cursors = new Cursors();
  cursors.want('12', 'ack', 3);
  cursors.want('12', 'ack', 2);
  assert.deepEqual(cursors.due(), [{ t: 'ack', c: '12', seq: 3 }]);
  cursors.want('12', 'read', 4);
  cursors.want('12', 'ack', 4);
  assert.deepEqual(cursors.due(), [{ t: 'read', c: '12', seq: 4 }]);
  cursors.known('12', { delivered: 4, read: 4 });
  assert.deepEqual(cursors.due(), []);
});

test('cursors: a crash that took the last second back is made good', () => {
  const cursors = new Cursors();
  cursors.want('12', 'read', 9);
  cursors.known('12', { delivered: 9, read: 9 });
  cursors.listed(item({ head: 9, delivered: 7, read: 5 }), true);
  assert.deepEqual(cursors.due(), [{ t: 'read', c: '12', seq: 9 }]);
  cursors.listed(item({ head: 4, delivered: 4, read: 2 }), false);
  assert.deepEqual(cursors.due(), [{ t: 'read', c: '12', seq: 4 }]);
  cursors.refused('12');
  assert.deepEqual(cursors.due(), []);
});
