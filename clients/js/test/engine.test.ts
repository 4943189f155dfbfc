/** The protocol of one device, over a WebSocket that is answered by hand. Seen from its events. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'vitest';
import { Engine, type EngineParts } from '../src/engine.js';
import type { EngineEvent } from '../src/events.js';
import type { Draft } from '../src/outbox.js';
import { mirror } from '../src/siblings.js';
import { Watcher } from '../src/watcher.js';
import { draft, entry, FakeSocket, item, type Json, sent, settle, socket, TestClock, uuid, WELCOME } from './fakes.js';

beforeEach(() => {
  FakeSocket.made = [];
});

class Rig {
  readonly clock = new TestClock(1000);
  readonly events: EngineEvent[] = [];
  readonly engine: Engine;
  readonly watcher: Watcher;

  constructor(facts: Partial<EngineParts> = {}) {
    this.engine = new Engine({
      url: 'ws://x/ws',
      token: async () => 'tok',
      WebSocket: FakeSocket,
      clock: this.clock,
      random: () => 0,
      emit: (event) => void this.events.push(structuredClone(event)),
      seqOf: () => null,
      stored: () => null,
      ...facts,
    });
    this.engine.device = 'd';
    this.engine.watcher = this.watcher = new Watcher(this.engine);
  }

  async connecting(): Promise<this> {
    this.engine.dial.connect();
    await settle();
    socket().open();
    return this;
  }

  async live(conversations: Json[] = [{ ...item({ head: 5 }) }], facts: Json = {}): Promise<this> {
    await this.connecting();
    socket().say({ ...WELCOME, conversations, ...facts });
    return this;
  }

  async again(welcome: Json = {}): Promise<void> {
    socket().end(1006);
    await this.clock.pass(1);
    socket().open();
    socket().say({ ...WELCOME, ...welcome });
  }

  told<T extends EngineEvent['t']>(t: T): (EngineEvent & { t: T })[] {
    return this.events.filter((event): event is EngineEvent & { t: T } => event.t === t);
  }

  /** Seqs of the entries that came, and how. */
  entries(): [number, string][] {
    return this.told('entry').map(({ entry: { seq }, how }) => [seq, how]);
  }

  send(peer: string, body: string, facts: Partial<Draft> = {}): string {
    const cid = uuid();
    this.engine.sender.add(draft({ peer, body, cid, ...facts }));
    return facts.cid ?? cid;
  }

  edit(ref: number | null, refcid: string | null = null): string {
    const cid = uuid();
    this.engine.sender.add(draft({ cid, kind: 'edit', ref, refcid, body: 'new' }));
    return cid;
  }
}

test('hello, welcome in pages, online; pushes that overtake the last page wait for it', async () => {
  const rig = await new Rig().connecting();
  const hello = { t: 'hello', v: 1, token: 'tok', device: 'd', watch: [], state: 'online', features: [], id: 1 };
  assert.deepEqual(sent('hello')[0], hello);
  socket().say({ ...WELCOME, conversations: [item({ head: 5 })], more: true, since: undefined });
  socket().say(entry(6));
  assert.deepEqual(rig.entries(), []);
  socket().say({ t: 'welcome', id: 1, conversations: [item({ c: '13', peer: 'carol' })], more: false, since: 's9' });
  assert.deepEqual(
    rig.told('item').map((event) => event.item.peer),
    ['bob', 'carol'],
  );
  assert.deepEqual(rig.entries(), [[6, 'live']]);
  assert.equal(rig.engine.places.since, 's9');
  assert.equal(rig.engine.dial.line.state, 'online');
});

test('a welcome of empty pages without end is left, and the line says why', async () => {
  const rig = await new Rig().connecting();
  socket().say({ ...WELCOME, conversations: [], more: true, since: undefined });
  const page = { t: 'welcome', id: 1, conversations: [], more: true };
  for (let pages = 2; pages <= 100; pages += 1) socket().say(page);
  assert.equal(rig.engine.dial.line.state, 'connecting');
  socket().say(page);
  const { state, reason, msg } = rig.engine.dial.line;
  assert.deepEqual([state, reason, msg], ['offline', 'protocol', 'this welcome has no end']);
  await rig.clock.pass(60_000);
  socket().open();
  socket().say({ ...WELCOME, conversations: [], more: true, since: undefined });
  assert.equal(rig.engine.dial.line.state, 'connecting'); // counted anew
});

test('an entry is passed on once, and acked, many by one frame', async () => {
  const rig = await new Rig().live();
  for (const seq of [6, 7, 7, 6, 8]) socket().say(entry(seq));
  assert.deepEqual(
    rig.entries().map(([seq]) => seq),
    [6, 7, 8],
  );
  await rig.clock.pass(100);
  assert.deepEqual(
    sent('ack').map(({ c, seq }) => [c, seq]),
    [['12', 8]],
  );
});

test('an own change of a message that is not held names it by its cid', async () => {
  const rig = await new Rig().live();
  rig.edit(null, 'm-1');
  socket().say({ t: 'ok', id: sent('edit')[0]?.id, c: '12', seq: 6, ts: 7 });
  assert.deepEqual(
    rig.told('entry').map(({ entry: { seq, ref, refcid } }) => [seq, ref, refcid]),
    [[6, undefined, 'm-1']],
  );
});

test('nothing goes out to nobody, and nobody is told of it', async () => {
  const rig = await new Rig().live();
  rig.send('', 'hi');
  assert.deepEqual([rig.told('outbox'), sent('send')], [[], []]);
});

test('a jump ends the connection and passes nothing on', async () => {
  const rig = await new Rig().live();
  socket().say(entry(7));
  assert.deepEqual([rig.entries(), rig.engine.dial.line.reason], [[], 'jump']);
});

test('a reconnect names the place and the mark; the rest follows in order', async () => {
  const rig = await new Rig().live();
  socket().say(entry(6));
  await rig.again({ conversations: [item({ head: 8 })] });
  const [hello] = sent('hello');
  assert.deepEqual([hello?.cursors, hello?.epoch, hello?.since], [{ 12: 6 }, 'e1', 's1']);
  for (const seq of [7, 8]) socket().say(entry(seq));
  assert.deepEqual(
    rig.entries().map(([seq]) => seq),
    [6, 7, 8],
  );
});

test('ok takes the place of the entry', async () => {
  const rig = await new Rig().live();
  const cid = rig.send('bob', 'hi');
  const [frame] = sent('send');
  assert.deepEqual([frame?.c, frame?.body, frame?.retry], ['12', 'hi', undefined]);
  socket().say({ t: 'ok', id: frame?.id, c: '12', seq: 6, ts: 7 });
  socket().say(entry(6, { from: 'alice', to: 'bob', cid }));
  assert.deepEqual(rig.entries(), [[6, 'live']]);
  assert.deepEqual(rig.told('entry')[0]?.entry, {
    c: '12',
    seq: 6,
    ts: 7,
    from: 'alice',
    to: 'bob',
    kind: 'message',
    cid,
    body: 'hi',
  });
  assert.deepEqual(
    rig.told('done').map(({ ok }) => ok),
    [{ c: '12', seq: 6, ts: 7, dup: false }],
  );
  assert.equal(rig.engine.outbox.size, 0);
});

test('a first message names the user, later ones the conversation', async () => {
  const rig = await new Rig().live([]);
  rig.send('dora', 'one');
  assert.equal(sent('send')[0]?.to, 'dora');
  socket().say({ t: 'ok', id: sent('send')[0]?.id, c: '77', seq: 1, ts: 1 });
  rig.send('dora', 'two');
  assert.equal(sent('send')[1]?.c, '77');
});

test('a lost answer: sent again with retry; a dup moves no place', async () => {
  const rig = await new Rig().live();
  const cid = rig.send('bob', 'hi');
  await rig.again({ conversations: [item({ head: 6 })] });
  assert.deepEqual(
    sent('send').map((frame) => [frame.cid, frame.retry]),
    [[cid, true]],
  );
  socket().say({ t: 'ok', id: sent('send')[0]?.id, c: '12', seq: 6, ts: 6, dup: true });
  assert.equal(rig.engine.outbox.size, 0);
  socket().say(entry(6, { from: 'alice', to: 'bob', cid }));
  assert.deepEqual(rig.entries(), [
    [6, 'dup'],
    [6, 'live'],
  ]);
});

test('an own entry in the resync settles the outbox, after it came, and it is not sent again', async () => {
  const rig = await new Rig().live();
  const cid = rig.send('bob', 'hi');
  socket().end(1006);
  await rig.clock.pass(1);
  socket().open();
  rig.events.length = 0;
  socket().say({ ...WELCOME, conversations: [item({ head: 6 })], more: true, since: undefined });
  socket().say(entry(6, { from: 'alice', to: 'bob', cid }));
  socket().say({ t: 'welcome', id: 1, conversations: [], more: false, since: 's2' });
  assert.deepEqual([sent('send'), rig.engine.outbox.size], [[], 0]);
  const names = rig.events.map(({ t }) => t);
  assert.ok(names.lastIndexOf('outbox') > names.indexOf('entry'));
  assert.equal(rig.told('done').length, 1);
});

test('another epoch: reset first, changes by seq fail, messages are sent again', async () => {
  const rig = await new Rig().live();
  const [hi, change, byCid] = [rig.send('bob', 'hi'), rig.edit(3), rig.edit(4, 'm-1')];
  assert.deepEqual(
    sent('edit').map(({ ref, refcid }) => [ref, refcid]),
    [
      [3, undefined],
      [4, 'm-1'],
    ],
  );
  await rig.again({ epoch: 'e2' });
  const names = rig.events.map(({ t }) => t);
  assert.ok(names.indexOf('reset') < names.lastIndexOf('welcome'));
  assert.deepEqual(
    rig.told('failed').map(({ cid, err }) => [cid, err.code]),
    [[change, 'epoch_changed']],
  );
  assert.deepEqual(
    sent('send').map(({ cid, to, retry }) => [cid, to, retry]),
    [[hi, 'bob', true]],
  );
  assert.deepEqual(
    sent('edit').map(({ cid, ref, refcid }) => [cid, ref, refcid]),
    [[byCid, undefined, 'm-1']],
  );
});

test('a token of somebody else: nothing of the last user goes out under the new name', async () => {
  const rig = await new Rig().live();
  rig.send('bob', 'mine');
  await rig.again({ user: 'mallory', conversations: [item({ head: 5 })] });
  await rig.clock.pass(500);
  socket().open();
  assert.deepEqual([sent('hello')[0]?.cursors, sent('hello')[0]?.since], [undefined, undefined]);
  socket().say({ ...WELCOME, user: 'mallory' });
  assert.deepEqual([sent('send'), rig.engine.user, rig.engine.outbox.size], [[], 'mallory', 0]);
  assert.deepEqual(
    rig.told('reset').map(({ why }) => why),
    ['another_user'],
  );
});

test('watch and away are said once online, also if they changed while the hello was on its way', async () => {
  const rig = await new Rig().connecting();
  rig.watcher.watch(['bob']);
  rig.watcher.away(true);
  assert.equal(socket().sent.length, 1);
  socket().say(WELCOME);
  assert.deepEqual(
    [sent('watch').map(({ users }) => users), sent('presence').map(({ state }) => state)],
    [[['bob']], ['away']],
  );
  rig.watcher.watch(['bob']);
  rig.watcher.away(true);
  assert.equal(socket().sent.length, 3);
});

test('a refused watch is said again when the server allows', async () => {
  const rig = await new Rig().live();
  rig.watcher.watch(['bob']);
  socket().say({ t: 'err', id: sent('watch')[0]?.id, code: 'rate_limited', retry_ms: 500 });
  rig.watcher.watch(['bob', 'carol']);
  assert.equal(sent('watch').length, 1);
  await rig.clock.pass(501);
  assert.deepEqual(sent('watch')[1]?.users, ['bob', 'carol']);
  socket().say({ t: 'ok', id: sent('watch')[1]?.id, presence: [{ user: 'bob', state: 'online', v: 3 }] });
  assert.deepEqual(rig.told('presence').at(-1)?.list, [{ user: 'bob', state: 'online', v: 3 }]);
});

test('cursors of many conversations go out in parts, each after the last was answered', async () => {
  const many = Array.from({ length: 130 }, (_, i) => ({ ...item({ c: String(i), peer: `u${i}`, head: 3 }) }));
  const rig = await new Rig().live(many);
  for (const { peer } of many) rig.engine.teller.cursor(peer, 'ack', 3);
  await rig.clock.pass(100);
  let answered = 0;
  while (answered < 130) {
    const acks = sent('ack').slice(answered);
    assert.ok(acks.length > 0 && acks.length <= 50);
    answered += acks.length;
    for (const { id } of acks) socket().say({ t: 'ok', id, delivered: 3, read: 0 });
  }
  assert.equal(new Set(sent('ack').map(({ c }) => c)).size, 130);
});

test('refused cursors: not one goes out before the longest wait that was named is over', async () => {
  const many = Array.from({ length: 3 }, (_, i) => ({ ...item({ c: String(i), peer: `u${i}`, head: 3 }) }));
  const rig = await new Rig().live(many);
  for (const { peer } of many) rig.engine.teller.cursor(peer, 'ack', 3);
  await rig.clock.pass(100);
  const waits = [2000, 5000, 300];
  for (const [i, { id }] of sent('ack').entries())
    socket().say({ t: 'err', id, code: 'unavailable', retry_ms: waits[i] });
  rig.engine.teller.cursor('u0', 'read', 3);
  await rig.clock.pass(4990);
  assert.deepEqual([sent('ack').length, sent('read').length], [3, 0]);
  await rig.clock.pass(20);
  assert.deepEqual([sent('ack').length, sent('read').length], [5, 1]);
});

test('a cursor that the server does not move is not asked for ever', async () => {
  const rig = await new Rig().live();
  rig.engine.teller.cursor('bob', 'read', 5);
  for (let i = 0; i < 5; i += 1) {
    await rig.clock.pass(200);
    for (const { id } of sent('read')) socket().say({ t: 'ok', id, delivered: 0, read: 0 });
  }
  assert.equal(sent('read').length, 1);
});

test('a line that ends with cursors under way does not run in circles, and says them on the next one', async () => {
  const rig = await new Rig().live();
  rig.engine.teller.cursor('bob', 'read', 5);
  await rig.clock.pass(100);
  assert.equal(sent('read').length, 1);
  await rig.again({ conversations: [item({ head: 5 })] });
  assert.equal(sent('read').length, 1);
});

test('drain: no new sends here; they go out on the next connection', async () => {
  const rig = await new Rig().live();
  socket().say({ t: 'notice', kind: 'drain', retry_ms: 1000 });
  rig.send('bob', 'later');
  assert.deepEqual(sent('send'), []);
  await rig.clock.pass(1000);
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 5 })] });
  assert.equal(sent('send').length, 1);
});

test('rate limited: waits as told, then goes on in order', async () => {
  const rig = await new Rig().live();
  const [a, b] = [rig.send('bob', 'a'), rig.send('bob', 'b')];
  const ids = sent('send').map(({ id }) => id);
  socket().say({ t: 'err', id: ids[0], code: 'rate_limited', retry_ms: 1000 });
  socket().say({ t: 'err', id: ids[1], code: 'blocked', cid: a });
  await rig.clock.pass(999);
  assert.equal(sent('send').length, 2);
  await rig.clock.pass(60);
  assert.deepEqual(
    sent('send')
      .slice(2)
      .map(({ cid }) => cid),
    [a],
  );
  socket().say({ t: 'ok', id: sent('send')[2]?.id, c: '12', seq: 6, ts: 1 });
  assert.deepEqual(
    sent('send')
      .slice(3)
      .map(({ cid }) => cid),
    [b],
  );
});

test('hello refused with cursors: once without them; refused again: of no use here', async () => {
  const rig = await new Rig().live();
  socket().end(1006);
  await rig.clock.pass(1);
  socket().open();
  socket().say({ t: 'err', id: 1, code: 'bad_field', msg: 'cursors' });
  await rig.clock.pass(1000);
  socket().open();
  assert.equal(sent('hello')[0]?.cursors, undefined);
  socket().say({ t: 'err', id: 1, code: 'bad_version' });
  assert.deepEqual([rig.engine.dial.line.state, rig.engine.dial.line.reason], ['stopped', 'bad_version']);
});

test('the token is renewed before it ends, on the same connection', async () => {
  let n = 0;
  const rig = await new Rig({ token: async () => `tok${n++}` }).live([], { exp: (WELCOME.ts as number) + 100000 });
  const from = rig.clock.now();
  while (sent('refresh').length === 0 && rig.clock.now() - from < 100000) {
    await rig.clock.pass(8001);
    socket().say({ t: 'receipt' }); // not silent
  }
  assert.deepEqual(
    sent('refresh').map(({ token }) => token),
    ['tok1'],
  );
  assert.equal(FakeSocket.made.length, 1);
});

test('tokens of a few seconds are not renewed each second, and a refused refresh is tried again', async () => {
  const rig = await new Rig().live([], { exp: (WELCOME.ts as number) + 40000 });
  const from = rig.clock.now();
  while (rig.clock.now() - from < 60000) {
    await rig.clock.pass(1000);
    socket().say({ t: 'receipt' });
    const asked = sent('refresh');
    if (asked.length === 1) socket().say({ t: 'err', id: asked[0]?.id, code: 'rate_limited', retry_ms: 100 });
    else for (const { id } of asked.slice(1)) socket().say({ t: 'ok', id, exp: rig.engine.now() + 20000 });
  }
  assert.ok(sent('refresh').length >= 3 && sent('refresh').length <= 8, String(sent('refresh').length));
});

test('a request that is under way when the line ends is rejected as disconnected', async () => {
  const rig = await new Rig().live();
  const asked = rig.engine.read({ t: 'history', c: '12' });
  socket().end(1006);
  await assert.rejects(asked, { code: 'disconnected' });
});

test('reads: four at once, and again where the server says so', async () => {
  const rig = await new Rig().live();
  const all = Promise.all(Array.from({ length: 6 }, (_, i) => rig.engine.read({ t: 'history', c: String(i) })));
  await settle();
  assert.equal(sent('history').length, 4);
  socket().say({ t: 'err', id: sent('history')[0]?.id, code: 'overloaded', retry_ms: 200 });
  await rig.clock.pass(201);
  for (let at = 1; at < 7; at += 1) {
    socket().say({ t: 'ok', id: sent('history')[at]?.id });
    await settle();
  }
  assert.equal((await all).length, 6);
  assert.equal(sent('history').length, 7);
});

test('a cid of the caller that stands for something else in the log: the send fails, and says so', async () => {
  const rig = await new Rig().live();
  const cid = rig.send('bob', 'mine', { tried: true, isGiven: true, cid: uuid() });
  socket().say({ t: 'ok', id: sent('send')[0]?.id, c: '12', seq: 4, ts: 6, dup: true });
  await settle();
  const [asked] = sent('history');
  assert.deepEqual([asked?.after, asked?.limit], [3, 1]);
  const { t: _, c: __, ...other } = entry(4, { from: 'alice', to: 'bob', cid, body: 'other' });
  socket().say({ t: 'ok', id: asked?.id, c: '12', entries: [other], more: false, head: 5, floor: 1 });
  await settle();
  assert.deepEqual(
    rig.told('failed').map(({ err }) => err.code),
    ['cid_conflict'],
  );
  assert.deepEqual(rig.told('done'), []);
});

test('what is malformed is told and passed over: no nameless conversation, no seq as text, no jump behind it', async () => {
  const rig = await new Rig().live();
  const bad = [
    { t: 'entry' },
    entry(6, { seq: '6' }),
    entry(6, { from: 7 }),
    { t: 'receipt', c: 3 },
    { t: 'typing', from: {} },
  ];
  for (const frame of bad) socket().say(frame);
  assert.equal(rig.told('malformed').length, 5);
  assert.deepEqual(rig.entries(), []);
  socket().say(entry(7));
  assert.deepEqual(rig.entries(), [[7, 'live']], 'the malformed 6 was stepped over');
});

test('a welcome without what it needs ends this try; one with a bad item is used, but its mark is not kept', async () => {
  const rig = await new Rig().connecting();
  socket().say({ ...WELCOME, epoch: 7 });
  assert.deepEqual([rig.engine.dial.line.state, rig.engine.dial.line.reason], ['offline', 'protocol']);
  await rig.clock.pass(1000);
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 5 }), { c: 4 }, null] });
  assert.equal(rig.engine.dial.line.state, 'online');
  assert.deepEqual([rig.told('item').length, rig.engine.places.since], [1, null]);
});

test('another tab that mirrors the events knows what this one knows', async () => {
  const rig = await new Rig().live();
  socket().say(entry(6));
  rig.send('bob', 'a');
  socket().say({ t: 'ok', id: sent('send')[0]?.id, c: '12', seq: 7, ts: 7 });
  const waits = rig.send('bob', 'b');
  const other = new Rig();
  for (const event of rig.events) mirror(other.engine, event);
  assert.deepEqual(other.engine.places.resume(), rig.engine.places.resume());
  assert.deepEqual(
    other.engine.outbox.all().map(({ cid }) => cid),
    [waits],
  );
  assert.equal(other.engine.user, 'alice');
});

test('each key of an item and of an entry is held to its type', async () => {
  for (const key of Object.keys(item())) {
    const rig = await new Rig().live([{ ...item({ head: 5 }), [key]: { no: 1 } }]);
    assert.deepEqual([rig.told('item').length, rig.told('malformed').length], [0, 1], key);
  }
  for (const key of ['seq', 'ts', 'from', 'to', 'kind', 'body', 'rev', 'edited', 'deleted', 'cid', 'c']) {
    const rig = await new Rig().live();
    socket().say(entry(6, { [key]: { no: 1 } }));
    assert.deepEqual([rig.entries().length, rig.told('malformed').length], [0, 1], key);
  }
});

test('a refusal that names no wait is not answered in a busy loop: neither cursors nor the watch list', async () => {
  const rig = await new Rig().live();
  rig.watcher.watch(['bob']);
  rig.engine.teller.cursor('bob', 'ack', 3);
  const told = { ack: 0, watch: 0 };
  for (let ms = 0; ms < 1000; ms += 1) {
    await rig.clock.pass(1);
    for (const { t, id } of socket().sent.splice(0))
      if (t === 'ack' || t === 'watch') {
        told[t] += 1;
        socket().say({ t: 'err', id, code: 'overloaded', retry_ms: 0 });
      }
  }
  assert.ok(told.ack > 1 && told.ack <= 5, `${told.ack} acks in a second`);
  assert.ok(told.watch > 1 && told.watch <= 5, `${told.watch} watch lists in a second`);
});
