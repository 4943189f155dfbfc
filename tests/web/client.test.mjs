import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { Client } from '../../chatd/web/client.js';
import { FakeClock, FakeSocket, WELCOME, item, recorder, settle, socket, uuid } from './fakes.mjs';

beforeEach(() => {
  FakeSocket.made = [];
});

async function connecting(facts = {}) {
  const clock = new FakeClock();
  const sink = recorder();
  const parts = { url: 'ws://x/ws', device: 'd', sink, token: async () => 'tok', WebSocket: FakeSocket, clock, random: () => 0, uuid };
  const client = new Client({ ...parts, ...facts });
  client.connect();
  await settle();
  socket().open();
  return { clock, client, sink };
}

async function live(conversations = [item({ head: 5 })], facts = {}) {
  const all = await connecting(facts);
  socket().say({ ...WELCOME, conversations });
  return all;
}

async function again({ clock }, welcome = {}) {
  socket().end(1006);
  await clock.pass(1);
  socket().open();
  socket().say({ ...WELCOME, ...welcome });
}

const sent = (t) => socket().sent.filter((frame) => frame.t === t);
const told = (sink, name) => sink.calls.filter(([what]) => what === name).map(([, ...args]) => args);
const entry = (seq, facts = {}) => ({
  t: 'entry', c: '12', seq, ts: 1000 + seq, from: 'bob', to: 'alice', kind: 'message', body: `m${seq}`, ...facts,
});

test('hello, welcome in pages, live; pushes that overtake the last page wait for it', async () => {
  const { client, sink } = await connecting();
  assert.deepEqual(sent('hello')[0], { t: 'hello', v: 1, token: 'tok', device: 'd', watch: [], state: 'online', features: [], id: 1 });
  socket().say({ ...WELCOME, conversations: [item({ head: 5 })], more: true, since: undefined });
  socket().say(entry(6));
  assert.deepEqual(told(sink, 'entry'), []);
  socket().say({ t: 'welcome', id: 1, conversations: [item({ c: '13', peer: 'carol' })], more: false, since: 's9' });
  assert.deepEqual(told(sink, 'item').map(([{ peer }]) => peer), ['bob', 'carol']);
  assert.equal(told(sink, 'entry').length, 1);
  assert.equal(client.places.since, 's9');
  assert.equal(client.status.state, 'live');
});

test('an entry is passed on once, and acked, many by one frame', async () => {
  const { clock, sink } = await live();
  for (const seq of [6, 7, 7, 6, 8]) socket().say(entry(seq));
  assert.deepEqual(told(sink, 'entry').map(([{ seq }]) => seq), [6, 7, 8]);
  await clock.pass(100);
  assert.deepEqual(sent('ack').map(({ c, seq }) => [c, seq]), [['12', 8]]);
});

test('nothing goes out to nobody, and nobody is told of it', async () => {
  const { client, sink } = await live();
  assert.deepEqual([client.send('', 'hi'), client.delete('', 3, 'c'), client.edit('', 3, 'x')], [null, null, null]);
  assert.deepEqual([told(sink, 'outbox'), sent('send'), sent('delete'), sent('edit')], [[], [], [], []]);
});

test('a jump ends the connection and passes nothing on', async () => {
  const { sink, client } = await live();
  socket().say(entry(7));
  assert.deepEqual([told(sink, 'entry'), client.status.reason], [[], 'jump']);
});

test('a reconnect names the place and the mark; the rest follows in order', async () => {
  const all = await live();
  socket().say(entry(6));
  await again(all, { conversations: [item({ head: 8 })] });
  const { cursors, epoch, since } = sent('hello')[0];
  assert.deepEqual([cursors, epoch, since], [{ 12: 6 }, 'e1', 's1']);
  for (const seq of [7, 8]) socket().say(entry(seq));
  assert.deepEqual(told(all.sink, 'entry').map(([{ seq }]) => seq), [6, 7, 8]);
});

test('ok takes the place of the entry', async () => {
  const { client, sink } = await live();
  client.send('bob', 'hi');
  const [frame] = sent('send');
  assert.deepEqual([frame.c, frame.body, frame.retry], ['12', 'hi', undefined]);
  socket().say({ t: 'ok', id: frame.id, c: '12', seq: 6, ts: 7 });
  socket().say(entry(6, { from: 'alice', to: 'bob', cid: frame.cid }));
  const [[only, how], ...more] = told(sink, 'entry');
  assert.deepEqual([only.seq, only.from, only.to, only.cid, how, more.length, client.outbox.size], [6, 'alice', 'bob', frame.cid, 'live', 0, 0]);
});

test('a first message names the user, later ones the conversation', async () => {
  const { client } = await live([]);
  client.send('dora', 'one');
  const [frame] = sent('send');
  assert.equal(frame.to, 'dora');
  socket().say({ t: 'ok', id: frame.id, c: '77', seq: 1, ts: 1 });
  client.send('dora', 'two');
  assert.equal(sent('send')[1].c, '77');
});

test('a lost answer: sent again with retry; the entry from the resync settles it before', async () => {
  const all = await live();
  all.client.send('bob', 'hi');
  const { cid } = sent('send')[0];
  await again(all, { conversations: [item({ head: 6 })] });
  assert.deepEqual(sent('send').map((frame) => [frame.cid, frame.retry]), [[cid, true]]);
  socket().say({ t: 'ok', id: sent('send')[0].id, c: '12', seq: 6, ts: 6, dup: true });
  assert.equal(all.client.outbox.size, 0);
  socket().say(entry(6, { from: 'alice', to: 'bob', cid }));
  assert.deepEqual(told(all.sink, 'entry').map(([{ seq }, how]) => [seq, how]), [[6, 'dup'], [6, 'live']], 'a dup moves no place');
});

test('an own entry in the resync settles the outbox, and the sink hears of it, for what is stored must go', async () => {
  const all = await live();
  all.client.send('bob', 'hi');
  const { cid } = sent('send')[0];
  socket().end(1006);
  await all.clock.pass(1);
  socket().open();
  all.sink.calls.length = 0;
  socket().say({ ...WELCOME, conversations: [item({ head: 6 })], more: true, since: undefined });
  socket().say(entry(6, { from: 'alice', to: 'bob', cid }));
  socket().say({ t: 'welcome', id: 1, conversations: [], more: false, since: 's2' });
  assert.deepEqual([sent('send'), all.client.outbox.size], [[], 0], 'known to be done: not sent again');
  const names = all.sink.calls.map(([name]) => name);
  assert.ok(names.includes('outbox') && names.indexOf('outbox') > names.indexOf('entry'));
});

test('another epoch: reset first, edits go, messages are sent again', async () => {
  const all = await live();
  all.client.send('bob', 'hi');
  all.client.edit('bob', 3, 'x');
  await again(all, { epoch: 'e2' });
  const names = all.sink.calls.map(([name]) => name);
  assert.ok(names.indexOf('reset') < names.lastIndexOf('welcome'));
  assert.deepEqual(told(all.sink, 'dropped').map(([list]) => list.map(({ kind }) => kind)), [['edit']]);
  assert.deepEqual(sent('send').map(({ to, retry }) => [to, retry]), [['bob', true]]);
});

test('another epoch: a change that knows the cid of its message goes out by that alone', async () => {
  const all = await live();
  all.client.edit('bob', 3, 'x', 'm-1');
  assert.deepEqual(sent('edit').map(({ ref, refcid }) => [ref, refcid]), [[3, 'm-1']]);
  await again(all, { epoch: 'e2' });
  assert.deepEqual(told(all.sink, 'dropped'), [[[]]]);
  assert.deepEqual(sent('edit').map(({ to, ref, refcid, retry }) => [to, ref, refcid, retry]), [['bob', undefined, 'm-1', true]]);
});

test('what the server says against a token is kept for the user', async () => {
  const { client } = await connecting();
  assert.equal(client.refusal, '');
  socket().say({ t: 'err', id: 1, code: 'unauthorized', msg: 'no user id' });
  assert.equal(client.refusal, 'no user id');
});

test('a token of somebody else: nothing of the last user goes out under the new name', async () => {
  const all = await live();
  all.client.send('bob', 'mine');
  socket().end(1006);
  await all.clock.pass(1);
  socket().open();
  socket().say({ ...WELCOME, user: 'mallory', conversations: [item({ head: 5 })] });
  await all.clock.pass(1);
  socket().open();
  assert.deepEqual([sent('hello')[0].cursors, sent('hello')[0].since], [undefined, undefined]);
  socket().say({ ...WELCOME, user: 'mallory' });
  assert.deepEqual([sent('send'), all.client.user, all.client.outbox.size], [[], 'mallory', 0]);
});

test('watch and away are said once live, also if they changed while the hello was on its way', async () => {
  const { client } = await connecting();
  client.watch(['bob']);
  client.setAway(true);
  assert.equal(socket().sent.length, 1);
  socket().say(WELCOME);
  assert.deepEqual([sent('watch').map(({ users }) => users), sent('presence').map(({ state }) => state)], [[['bob']], ['away']]);
  client.watch(['bob']);
  client.setAway(true);
  assert.equal(socket().sent.length, 3);
});

test('a refused watch is said again when the server allows', async () => {
  const { client, clock, sink } = await live();
  client.watch(['bob']);
  socket().say({ t: 'err', id: sent('watch')[0].id, code: 'rate_limited', retry_ms: 500 });
  client.watch(['bob', 'carol']);
  assert.equal(sent('watch').length, 1);
  await clock.pass(501);
  assert.deepEqual(sent('watch')[1].users, ['bob', 'carol']);
  socket().say({ t: 'ok', id: sent('watch')[1].id, presence: [{ user: 'bob', state: 'online', v: 3 }] });
  assert.deepEqual(told(sink, 'presence').at(-1), [[{ user: 'bob', state: 'online', v: 3 }]]);
});

test('cursors of many conversations go out in parts, each after the last was answered', async () => {
  const many = Array.from({ length: 130 }, (_, i) => item({ c: String(i), peer: `u${i}`, head: 3 }));
  const { client, clock } = await live(many);
  for (const { peer } of many) client.ack(peer, 3);
  await clock.pass(100);
  const counts = [];
  for (let told_ = 0; told_ < 130; told_ = sent('ack').length) {
    const acks = sent('ack');
    counts.push(acks.length - (counts.length ? counts.reduce((a, b) => a + b) : 0));
    for (const { id } of acks.slice(-counts.at(-1))) socket().say({ t: 'ok', id, delivered: 3, read: 0 });
    await clock.pass(100);
    if (counts.length > 9) break;
  }
  assert.deepEqual(new Set(sent('ack').map(({ c }) => c)).size, 130);
  assert.equal(sent('ack').length, 130);
  assert.ok(Math.max(...counts) <= 50);
});

test('a cursor that the server does not move is not asked for ever', async () => {
  const { client, clock } = await live();
  client.read('bob', 5);
  for (let i = 0; i < 5; i += 1) {
    await clock.pass(200);
    for (const { id } of sent('read')) socket().say({ t: 'ok', id, delivered: 0, read: 0 });
  }
  assert.equal(sent('read').length, 1);
});

test('a line that ends with cursors under way does not run in circles', async () => {
  const { client, clock, ...rest } = await live();
  client.read('bob', 5);
  await clock.pass(100);
  assert.equal(sent('read').length, 1);
  await again({ clock, ...rest }, { conversations: [item({ head: 5 })] });
  assert.equal(sent('read').length, 1, 'and says them on the next connection');
});

test('drain: no new sends here; they go out on the next connection', async () => {
  const { client, clock } = await live();
  socket().say({ t: 'notice', kind: 'drain', retry_ms: 1000 });
  client.send('bob', 'later');
  assert.deepEqual(sent('send'), []);
  await clock.pass(1000);
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 5 })] });
  assert.equal(sent('send').length, 1);
});

test('rate limited: waits as told, then goes on in order', async () => {
  const { client, clock } = await live();
  client.send('bob', 'a');
  client.send('bob', 'b');
  const [a, b] = sent('send');
  socket().say({ t: 'err', id: a.id, code: 'rate_limited', retry_ms: 1000 });
  socket().say({ t: 'err', id: b.id, code: 'blocked', cid: a.cid });
  await clock.pass(999);
  assert.equal(sent('send').length, 2);
  await clock.pass(60);
  assert.deepEqual(sent('send').slice(2).map(({ cid }) => cid), [a.cid]);
  socket().say({ t: 'ok', id: sent('send')[2].id, c: '12', seq: 6, ts: 1 });
  assert.deepEqual(sent('send').slice(3).map(({ cid }) => cid), [b.cid]);
});

test('try again: a failed one goes out with a new cid', async () => {
  const { client } = await live();
  client.send('bob', 'a');
  const [{ id, cid }] = sent('send');
  socket().say({ t: 'err', id, code: 'refused', msg: 'no' });
  assert.equal(client.outbox.of('bob')[0].state, 'failed');
  client.again(cid);
  assert.equal(sent('send').length, 2);
  assert.notEqual(sent('send')[1].cid, cid);
  assert.equal(sent('send')[1].retry, undefined);
});

test('hello refused with cursors: once without them; refused again: this page is of no use here', async () => {
  const all = await live();
  socket().end(1006);
  await all.clock.pass(1);
  socket().open();
  socket().say({ t: 'err', id: 1, code: 'bad_field', msg: 'cursors' });
  await all.clock.pass(1000);
  socket().open();
  assert.equal(sent('hello')[0].cursors, undefined);
  socket().say({ t: 'err', id: 1, code: 'bad_version' });
  assert.deepEqual([all.client.status.state, all.client.status.reason], ['stopped', 'protocol']);
});

test('the token is renewed before it ends, on the same connection', async () => {
  let n = 0;
  const all = await connecting({ token: async () => `tok${n++}` });
  socket().say({ ...WELCOME, exp: WELCOME.ts + 100000 });
  for (let i = 0; i < 5; i += 1) {
    await all.clock.pass(8001);
    socket().say({ t: 'receipt', c: 'x', from: 'x' }); // not silent
  }
  assert.deepEqual(sent('refresh').map(({ token }) => token), ['tok1']);
  assert.equal(FakeSocket.made.length, 1);
});

test('a request that is under way when the line ends is rejected as disconnected', async () => {
  const { client } = await live();
  const asked = client.history('bob', { limit: 5 });
  socket().end(1006);
  await assert.rejects(asked, { code: 'disconnected' });
});
