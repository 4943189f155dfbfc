import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Conversation } from '../../chatd/web/model.js';
import { preview, rows } from '../../chatd/web/rows.js';
import { dayName, dayOf, lastSeen, seconds, shortTime } from '../../chatd/web/times.js';

const NOON = new Date(2026, 5, 17, 12).getTime(); // a Wednesday
const MINUTE = 60000;
const DAY = 24 * 60 * MINUTE;

function conversation(messages, facts = {}) {
  const it = Object.assign(new Conversation('bob', NOON), { c: '12' }, facts);
  messages.forEach(([from, body, ts = NOON], i) => {
    it.log.take({ seq: i + 1, ts, from, kind: 'message', body, cid: from === 'alice' ? `c${i + 1}` : null }, 'live');
  });
  return it;
}
const waiting = (facts) => ({
  peer: 'bob', cid: 'w', kind: 'message', body: 'w', ref: null, at: NOON, tried: false, state: 'queued', refused: false, code: null, msg: null,
  ...facts,
});
const AT = { user: 'alice', now: NOON, editMs: 15 * MINUTE, mark: null, canDiscard: () => true };
const list = (it, items = [], facts = {}) => rows(it, items, { ...AT, ...facts });
const messages = (all) => all.filter(({ type }) => type === 'message');

test('ticks: sent, delivered, read by the peer\'s cursors; none on what the peer wrote', () => {
  const it = conversation([['alice', 'a'], ['alice', 'b'], ['alice', 'c'], ['bob', 'd']], { peerRead: 1, peerDelivered: 2 });
  assert.deepEqual(messages(list(it)).map(({ tick }) => tick), ['read', 'delivered', 'sent', 'none']);
});

test('what waits is sending, after a refusal waiting with its reason, else failed with both ways out', () => {
  const it = conversation([]);
  const tick = (facts) => messages(list(it, [waiting(facts)]))[0];
  assert.equal(tick({}).tick, 'sending');
  assert.equal(tick({ code: 'blocked' }).tick, 'sending');
  assert.equal(tick({ state: 'sent', code: 'unavailable' }).tick, 'sending', 'its outcome is unknown');
  assert.deepEqual([tick({ code: 'rate_limited' }).tick, tick({ code: 'rate_limited' }).fault.canAgain], ['waiting', false]);
  const failed = tick({ state: 'failed', code: 'nonsense', msg: 'because' });
  assert.deepEqual([failed.tick, failed.fault.why, failed.fault.canAgain, failed.fault.canDiscard], ['failed', 'because', true, true]);
});

test('a waiting message has the key of the stored one, and is not shown twice', () => {
  const it = conversation([['alice', 'a']]);
  const [stored] = messages(list(it));
  const all = messages(list(it, [waiting({ cid: 'c1', body: 'a' }), waiting({ cid: 'c9' })]));
  assert.deepEqual(all.map(({ key }) => key), [stored.key, 'cc9']);
});

test('keys are never given twice', () => {
  const it = conversation([['bob', 'a', NOON - DAY], ['bob', 'b', NOON], ['alice', 'c', NOON]]);
  const all = list(it, [waiting({ cid: 'old', state: 'failed', at: NOON - DAY }), waiting({ cid: 'x' })], { mark: 1 });
  assert.equal(new Set(all.map(({ key }) => key)).size, all.length);
});

test('a day above the first message of each day, the unread mark above the first unread one of the peer', () => {
  const it = conversation([['bob', 'a', NOON - DAY], ['alice', 'b', NOON - MINUTE], ['bob', 'c', NOON]]);
  assert.deepEqual(list(it, [], { mark: 1 }).map(({ type }) => type), ['day', 'message', 'day', 'message', 'new', 'message']);
  assert.deepEqual(list(it, [], { mark: 0 }).map(({ type }) => type), ['day', 'new', 'message', 'day', 'message', 'message']);
  assert.deepEqual(list(it, [], { mark: 3 }).map(({ type }) => type), ['day', 'message', 'day', 'message', 'message']);
});

test('a waiting edit or deletion is shown on its message; a failed one says so and changes nothing', () => {
  const it = conversation([['alice', 'old']]);
  const show = (facts) => messages(list(it, [waiting({ kind: 'edit', ref: 1, body: 'new', ...facts })]))[0];
  assert.deepEqual([show({}).body, show({}).changing], ['new', 'edit']);
  const deleting = show({ kind: 'delete', body: null });
  assert.deepEqual([deleting.body, deleting.changing, deleting.canDelete], ['old', 'delete', false]);
  const failed = show({ state: 'failed', code: 'too_late' });
  assert.deepEqual([failed.body, failed.changing, failed.fault.what], ['old', null, 'edit']);
});

test('editing ends with its time, deleting does not; only one\'s own, only what stands', () => {
  const it = conversation([['alice', 'a', NOON - 16 * MINUTE], ['alice', 'b', NOON - 14 * MINUTE], ['bob', 'c']]);
  it.log.take({ seq: 4, ts: NOON, from: 'alice', kind: 'message', body: null, deleted: NOON, rev: 5 }, 'live');
  const can = messages(list(it)).map(({ canEdit, canDelete }) => [canEdit, canDelete]);
  assert.deepEqual(can, [[false, true], [true, true], [false, false], [false, false]]);
});

test('messages of one side stand as a group while they are close', () => {
  const it = conversation([['bob', 'a'], ['bob', 'b', NOON + MINUTE], ['bob', 'c', NOON + 20 * MINUTE], ['alice', 'd', NOON + 20 * MINUTE]]);
  assert.deepEqual(messages(list(it)).map(({ first, last }) => [first, last]), [[true, false], [false, true], [true, true], [true, true]]);
});

test('a few emoji stand large, other text does not; many lines are folded', () => {
  const shape = (body) => messages(list(conversation([['bob', body]])))[0];
  for (const body of ['👍', '👩‍👩‍👧‍👦', '🇩🇪🇫🇷', '❤️', '👍🏽👍🏽👍🏽']) assert.equal(shape(body).jumbo, true, body);
  for (const body of ['1', '#', '123', '👍👍👍👍', '👍 ok', '©', '']) assert.equal(shape(body).jumbo, false, body);
  assert.equal(shape('x\n'.repeat(40)).isLong, true);
  assert.equal(shape('x\n'.repeat(3)).isLong, false);
});

test('the preview: what waits, else the last message, else nothing; deleted ones say so', () => {
  const it = conversation([['bob', 'a'], ['alice', 'b']], { peerDelivered: 2 });
  assert.deepEqual([preview(it, [], 'alice').text, preview(it, [], 'alice').tick], ['b', 'delivered']);
  assert.equal(preview(it, [waiting({ body: 'later' })], 'alice').text, 'later');
  assert.equal(preview(it, [waiting({ cid: 'c2' })], 'alice').text, 'b');
  assert.equal(preview(it, [waiting({ kind: 'edit', ref: 1 })], 'alice').text, 'b');
  it.log.take({ seq: 3, ts: NOON, from: 'alice', kind: 'delete', ref: 2 }, 'live');
  assert.equal(preview(it, [], 'alice').kind, 'deleted');
  assert.equal(preview(new Conversation('x', 1), [], 'alice').kind, 'none');
});

test('times in words', () => {
  assert.equal(dayOf(NOON), dayOf(NOON + 60 * MINUTE));
  assert.deepEqual([dayName(NOON, NOON), dayName(NOON - DAY, NOON), dayName(NOON + 10 * MINUTE, NOON)], ['Today', 'Yesterday', 'Today']);
  assert.ok(dayName(NOON - 3 * DAY, NOON).length > 0 && dayName(NOON - 400 * DAY, NOON).includes('2025'));
  assert.equal(shortTime(NOON - DAY, NOON), 'Yesterday');
  assert.equal(lastSeen(null, NOON), 'offline');
  assert.equal(lastSeen(NOON + 5000, NOON), 'last seen just now');
  assert.equal(lastSeen(NOON - 5 * MINUTE, NOON), 'last seen 5 min ago');
  assert.ok(lastSeen(NOON - 3 * 60 * MINUTE, NOON).startsWith('last seen today at '));
  assert.ok(lastSeen(NOON - DAY, NOON).startsWith('last seen yesterday at '));
  assert.deepEqual([seconds(1), seconds(1001)], ['1 s', '2 s']);
});

test('every midnight of a year makes one new day, also where the clock changes', () => {
  for (let day = 0; day < 366; day += 1) {
    const before = new Date(2026, 0, 1 + day, 23, 59).getTime();
    const after = new Date(2026, 0, 2 + day, 0, 1).getTime();
    assert.notEqual(dayOf(before), dayOf(after));
    assert.equal(dayName(before, after), 'Yesterday');
  }
});
