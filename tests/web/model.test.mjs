import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MESSAGES_KEPT, Model } from '../../chatd/web/model.js';
import { TYPING_EXPIRES_MS } from '../../chatd/web/wire.js';
import { FakeClock, WELCOME, item, seeds, withSeed } from './fakes.mjs';

const NOW = WELCOME.ts;

function model(items = [], pending = () => []) {
  const clock = new FakeClock(NOW);
  const changed = new Set();
  const arrived = [];
  const it = new Model({ now: () => clock.now(), changed: (topic) => changed.add(topic), pending, arrived: (entry) => arrived.push(entry.seq) });
  it.status({ state: 'live', reason: '', retryAt: 0 });
  it.welcome(WELCOME);
  for (const one of items) it.item(one, false);
  it.synced();
  return { it, clock, changed, arrived };
}
const from = (who, seq, facts = {}) => ({
  c: '12', seq, ts: NOW + seq, from: who, to: who === 'alice' ? 'bob' : 'alice', kind: 'message', body: `m${seq}`, ...facts,
});
const bob = (it) => it.conversations.get('bob');

test('unread: the server\'s number, and what comes after it; not what it counted already', () => {
  const { it, arrived } = model([item({ head: 10, unread: 3, read: 6 })]);
  it.entry(from('bob', 9), 'live');
  it.entry(from('bob', 10), 'live');
  assert.equal(bob(it).unread, 3);
  it.entry(from('bob', 11), 'live');
  it.entry(from('bob', 12, { kind: 'edit', ref: 11 }), 'live');
  it.entry(from('alice', 13), 'live');
  assert.equal(bob(it).unread, 4);
  assert.deepEqual(arrived, [11]);
  assert.equal(it.unread(), 4);
});

test('reading: to the head clears all; in between what the log or the difference says', () => {
  const { it } = model([item({ head: 10, unread: 9, read: 0 })]);
  it.page('bob', { entries: [7, 8, 9, 10].map((seq) => from(seq === 8 ? 'alice' : 'bob', seq)), more: true, head: 10, floor: 1 });
  it.see('bob', 3);
  assert.equal(bob(it).unread, 9, 'what is not held cannot be counted');
  it.see('bob', 9);
  assert.equal(bob(it).unread, 1, 'held to the head: counted');
  it.see('bob', 8);
  assert.equal(bob(it).unread, 1, 'only forward');
  it.cursors({ c: '12', from: 'alice', delivered: 10, read: 10 });
  assert.equal(bob(it).unread, 0);
});

test('ticks: the peer\'s cursors only rise, and belong to their conversation', () => {
  const { it } = model([item({ head: 10, peer_delivered: 4, peer_read: 2 })]);
  it.cursors({ c: '12', from: 'bob', delivered: 6, read: 5 });
  it.cursors({ c: '12', from: 'bob', delivered: 5, read: 4 });
  it.cursors({ c: '99', from: 'bob', delivered: 9, read: 9 });
  assert.deepEqual([bob(it).peerDelivered, bob(it).peerRead], [6, 5]);
});

test('presence: a lower v replaces nothing; a new connection starts anew; nothing is claimed while the line is down', () => {
  const { it } = model([item()]);
  it.presence([{ user: 'bob', state: 'online', v: 5 }]);
  it.presence([{ user: 'bob', state: 'offline', v: 4, seen: 1 }]);
  assert.equal(it.presenceOf('bob').state, 'online');
  it.presence([{ user: 'carol', state: 'hidden', v: 0 }]);
  assert.equal(it.presenceOf('carol'), null);
  it.presence([{ user: 'carol', state: 'away', v: 9 }]);
  assert.equal(it.presenceOf('carol').state, 'away');
  it.status({ state: 'waiting', reason: 'lost', retryAt: 0 });
  assert.equal(it.presenceOf('bob'), null);
  it.status({ state: 'live', reason: '', retryAt: 0 });
  it.welcome(WELCOME);
  it.presence([{ user: 'bob', state: 'offline', v: 1, seen: 7 }]);
  assert.deepEqual(it.presenceOf('bob'), { state: 'offline', v: 1, seen: 7 });
});

test('typing ends after 6 s, or by an entry of that user', async () => {
  const { it, clock } = model([item()]);
  it.typing({ c: '12', from: 'bob' });
  assert.equal(it.isTyping('bob'), true);
  assert.equal(it.typingEnds(), NOW + TYPING_EXPIRES_MS);
  await clock.pass(TYPING_EXPIRES_MS - 1);
  assert.equal(it.isTyping('bob'), true);
  await clock.pass(1);
  assert.deepEqual([it.isTyping('bob'), it.typingEnds()], [false, null]);
  it.typing({ c: '12', from: 'bob' });
  it.entry(from('alice', 1), 'live');
  assert.equal(it.isTyping('bob'), true);
  it.entry(from('bob', 2), 'live');
  assert.equal(it.isTyping('bob'), false);
  it.typing({ from: 'stranger' });
  it.typing({ from: 'alice' });
  assert.equal(it.conversations.size, 1);
});

test('sorted by the last entry; what waits in the outbox counts', () => {
  const waiting = [];
  const { it } = model([item({ ts: 5 }), item({ c: '13', peer: 'carol', ts: 9 })], (peer) => (peer === 'bob' ? waiting : []));
  assert.deepEqual(it.sorted().map(({ peer }) => peer), ['carol', 'bob']);
  waiting.push({ at: 20 });
  assert.deepEqual(it.sorted().map(({ peer }) => peer), ['bob', 'carol']);
  it.entry({ ...from('carol', 1), c: '13', ts: 30 }, 'live');
  assert.deepEqual(it.sorted().map(({ peer }) => peer), ['carol', 'bob']);
});

test('open: listed so, or both sides seen', () => {
  const { it } = model([item({ open: false })]);
  it.entry(from('alice', 1), 'live');
  assert.equal(bob(it).open, false);
  it.entry(from('bob', 2), 'live');
  assert.equal(bob(it).open, true);
});

test('a chat that was only begun to be typed goes when it is left; one with a message stays', () => {
  const waiting = new Map();
  const { it } = model([], (peer) => waiting.get(peer) ?? []);
  it.show('dora');
  it.show('emil');
  assert.deepEqual([...it.conversations.keys()], ['emil']);
  waiting.set('emil', [{ at: 1, peer: 'emil' }]);
  it.show(null);
  assert.deepEqual([...it.conversations.keys()], ['emil']);
});

test('a conversation that leaves the screen keeps its newest messages only, and can fetch the rest', () => {
  const { it } = model([item({ head: 0 })]);
  it.show('bob');
  for (let seq = 1; seq <= MESSAGES_KEPT + 50; seq += 1) it.entry(from('bob', seq), 'live');
  it.show(null);
  const { log } = bob(it);
  assert.deepEqual([log.messages().length, log.lo, log.more], [MESSAGES_KEPT, 51, true]);
});

test('another epoch: no message of the old log stays, the one on the screen stays by name', () => {
  const { it } = model([item({ head: 3 }), item({ c: '13', peer: 'carol', head: 1 })]);
  it.show('bob');
  it.entry(from('bob', 4), 'live');
  it.reset();
  assert.deepEqual([...it.conversations.keys()], ['bob']);
  assert.equal(bob(it).log.messages().length, 0);
  it.cursors({ c: '12', from: 'bob', delivered: 9, read: 9 });
  assert.equal(bob(it).peerRead, 0, 'the old name means nothing');
});

test('another user: nothing of the last one is shown', () => {
  const { it } = model([item({ head: 3 })]);
  it.show('bob');
  it.welcome({ ...WELCOME, user: 'mallory' });
  assert.deepEqual([it.conversations.size, it.shown, it.user], [0, null, 'mallory']);
});

test('too much was missed while it was on the screen: what is read stays, the rest is apart; elsewhere it goes', () => {
  const { it } = model([item({ head: 0 }), item({ c: '13', peer: 'carol', head: 0 })]);
  it.show('bob');
  for (let seq = 1; seq <= 9; seq += 1) it.entry(from('bob', seq), 'live');
  it.entry({ ...from('carol', 1), c: '13' }, 'live');
  it.see('bob', 8);
  it.item(item({ head: 611, read: 7, unread: 604, page: true }), false);
  it.item(item({ c: '13', peer: 'carol', head: 601, unread: 600, page: true }), false);
  const { log, unread, read, missedTo } = bob(it);
  assert.deepEqual([log.hi, log.apart, unread, read, missedTo], [9, true, 603, 8, 611], 'what was seen and not told yet counts');
  assert.equal(it.conversations.get('carol').log.blank, true);
  it.entry(from('bob', 612), 'live');
  assert.deepEqual([bob(it).unread, log.hi, log.last.seq], [604, 9, 612]);
  it.page('bob', { entries: Array.from({ length: 100 }, (_, i) => from('bob', i + 1)), more: true, head: 612, floor: 1 }, true);
  it.see('bob', 50);
  assert.equal(bob(it).unread, 562);
  it.item(item({ head: 612, read: 50, unread: 562, reset: true }), false);
  assert.equal(bob(it).log.blank, true, 'another log stands there');
  it.page('bob', { entries: [from('bob', 612)], more: true, head: 612, floor: 1 });
  it.restart('bob', { entries: [from('bob', 51)], more: true, head: 612, floor: 1 }, true);
  it.show(null);
  assert.deepEqual([bob(it).log.blank, bob(it).log.last.seq], [true, 612], 'left: only the preview stays');
});

test('notes to oneself are never unread', () => {
  const { it } = model([item({ peer: 'alice', head: 2, unread: 2 })]);
  it.entry({ ...from('alice', 3), to: 'alice' }, 'live');
  it.see('alice', 3);
  assert.equal(it.conversations.get('alice').unread, 0);
  assert.equal(it.unread(), 0);
});

test('unread agrees with the log for any run of entries and cursor moves, when the log is held', async () => {
  for (const seed of seeds(100)) {
    await withSeed(seed, (d) => {
      const { it } = model([item({ head: 0 })]);
      let seq = 0;
      const theirs = [];
      for (let step = 0; step < 60; step += 1) {
        if (d.chance(0.6)) {
          seq += 1;
          const who = d.pick(['alice', 'bob']);
          if (who === 'bob') theirs.push(seq);
          it.entry(from(who, seq), 'live');
        } else if (seq > 0) {
          const to = 1 + d.below(seq);
          if (d.chance(0.5)) it.see('bob', to);
          else it.cursors({ c: '12', from: 'alice', read: to });
        }
        assert.equal(bob(it).unread, theirs.filter((one) => one > bob(it).read).length);
      }
    });
  }
});
