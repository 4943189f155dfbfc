/** The client as an application uses it, over a WebSocket that is answered by hand. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'vitest';
import { ChatClient, type ChatClientOptions, type ChatError, type ChatEvents } from '../src/index.js';
import {
  entry,
  FakeSocket,
  item,
  type Json,
  optionsOf,
  sent,
  settle,
  socket,
  TestClock,
  uuid,
  WELCOME,
} from './fakes.js';

beforeEach(() => {
  FakeSocket.made = [];
});

function made(facts: Partial<ChatClientOptions> = {}) {
  const clock = new TestClock(1000);
  return { clock, client: new ChatClient({ ...optionsOf(clock), ...facts }) };
}

async function online(conversations: Json[] = [{ ...item({ head: 5 }) }], facts: Partial<ChatClientOptions> = {}) {
  const rig = made(facts);
  await rig.client.start();
  await settle();
  socket().open();
  socket().say({ ...WELCOME, conversations });
  await settle();
  return rig;
}

/** The ok to the last send, edit or delete. */
function ok(seq: number, facts: Json = {}): void {
  const asked = socket()
    .sent.filter(({ t }) => t === 'send' || t === 'edit' || t === 'delete')
    .at(-1);
  socket().say({ t: 'ok', id: asked?.id, c: '12', seq, ts: 2000 + seq, ...facts });
}

function heard<K extends keyof ChatEvents>(client: ChatClient, event: K): ChatEvents[K][] {
  const all: ChatEvents[K][] = [];
  client.on(event, (value) => all.push(value));
  return all;
}

test('the constructor touches nothing: no socket, no timer, no token', () => {
  let asked = 0;
  const { clock } = made({
    token: async () => {
      asked += 1;
      return 'tok';
    },
  });
  assert.deepEqual([FakeSocket.made.length, clock.waiting, asked], [0, 0, 0]);
});

test('a send resolves once it is in the log; before that it is shown, and its handle says how far it has got', async () => {
  const { client } = await online();
  const sending = client.send('bob', 'hi');
  const messages = client.stores.messages('bob');
  const [waiting] = messages.getSnapshot().messages;
  assert.deepEqual([waiting?.state, waiting?.body, waiting?.seq, sending.state], ['sending', 'hi', null, 'sending']);
  ok(6);
  assert.deepEqual(await sending, { c: '12', seq: 6, ts: 2006, dup: false });
  const [stored] = messages.getSnapshot().messages;
  assert.deepEqual([stored?.state, stored?.seq, stored?.key, sending.state], ['sent', 6, waiting?.key, 'sent']);
  socket().say({ t: 'receipt', c: '12', from: 'bob', to: 'alice', delivered: 6, read: 0 });
  assert.deepEqual([messages.getSnapshot().messages[0]?.state, sending.state], ['delivered', 'delivered']);
  socket().say({ t: 'receipt', c: '12', from: 'bob', to: 'alice', delivered: 6, read: 6 });
  assert.deepEqual([messages.getSnapshot().messages[0]?.state, sending.state], ['read', 'read']);
});

test('offline it waits, and goes out in order once online', async () => {
  const { client } = made();
  const all = [client.send('bob', 'one'), client.send('bob', 'two')];
  await client.start();
  await settle();
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 5 })] });
  const frames = sent('send');
  assert.deepEqual(
    frames.map(({ body, retry }) => [body, retry]),
    [
      ['one', undefined],
      ['two', undefined],
    ],
  );
  for (const [i, { id }] of frames.entries()) socket().say({ t: 'ok', id, c: '12', seq: 6 + i, ts: 1 });
  assert.deepEqual(
    (await Promise.all(all)).map(({ seq }) => seq),
    [6, 7],
  );
});

test('what surely never left can be taken back and given another text; what may have left cannot', async () => {
  const { client } = made();
  const [a, b] = [client.send('bob', 'one'), client.send('bob', 'two')];
  assert.equal(await client.amend(b.cid, 'two!'), true);
  assert.equal(await a.cancel(), true);
  await assert.rejects(a, { code: 'cancelled', cid: a.cid });
  await client.start();
  await settle();
  socket().open();
  socket().say(WELCOME);
  assert.deepEqual(
    sent('send').map(({ body }) => body),
    ['two!'],
  );
  assert.deepEqual([await b.cancel(), await client.amend(b.cid, 'three')], [false, false]);
});

test('a body is judged before it is sent, as the server judges it; nobody is no peer', async () => {
  const { client } = await online();
  const codes = await Promise.all(
    [
      client.send('bob', 'é'.repeat(1025)),
      client.send('bob', ''),
      client.send('bob', 'a\u0000'),
      client.send('bob', '\ud800'),
      client.send('', 'x'),
    ].map((sending) =>
      sending.then(
        () => 'sent',
        (error: ChatError) => error.code,
      ),
    ),
  );
  assert.deepEqual(codes, ['too_long', 'bad_text', 'bad_text', 'bad_text', 'bad_peer']);
  assert.deepEqual([sent('send'), client.stores.outbox.getSnapshot()], [[], []]);
  void client.send('bob', 'é'.repeat(1024));
  assert.equal(sent('send').length, 1);
});

test('the cid of the caller: the same send again is the same one, another text is refused', async () => {
  const { client } = await online();
  const cid = uuid();
  const [one, same, other] = [
    client.send('bob', 'x', { cid: cid.toUpperCase() }),
    client.send('bob', 'x', { cid }),
    client.send('bob', 'y', { cid }),
  ];
  await assert.rejects(other, { code: 'cid_conflict', cid });
  assert.deepEqual(
    sent('send').map((frame) => [frame.cid, frame.retry]),
    [[cid, true]],
  );
  ok(6);
  assert.deepEqual([(await one).seq, (await same).seq], [6, 6]);
});

test('an abort ends the wait, and takes back what never left', async () => {
  const { client } = made();
  const control = new AbortController();
  const sending = client.send('bob', 'x', { signal: control.signal });
  control.abort(new Error('enough'));
  await assert.rejects(sending, { message: 'enough' });
  await settle();
  assert.deepEqual(client.stores.outbox.getSnapshot(), []);
  await assert.rejects(client.send('bob', 'x', { signal: control.signal }), { message: 'enough' });
});

test('a signal keeps nothing of a send that is done, and is no reason to take it back', async () => {
  const { client } = await online();
  const { signal } = new AbortController();
  const listeners = new Set<unknown>();
  signal.addEventListener = (_: string, listener: unknown) => void listeners.add(listener);
  signal.removeEventListener = (_: string, listener: unknown) => void listeners.delete(listener);
  const sending = client.send('bob', 'x', { signal });
  assert.equal(listeners.size, 1);
  ok(6);
  assert.equal((await sending).seq, 6);
  const refused = client.send('bob', 'y', { signal });
  socket().say({ t: 'err', id: sent('send').at(-1)?.id, code: 'refused' });
  await assert.rejects(refused, { code: 'refused' });
  assert.equal(listeners.size, 0);
});

test('refused for good: the promise rejects with all that the server said, the words stay, and go out anew', async () => {
  const { client } = await online();
  const sending = client.send('bob', 'x');
  socket().say({ t: 'err', id: sent('send')[0]?.id, code: 'refused', msg: 'no', field: 'body' });
  await assert.rejects(sending, {
    name: 'ChatError',
    code: 'refused',
    message: 'no',
    field: 'body',
    cid: sending.cid,
    retryMs: null,
  });
  const [failed] = client.stores.messages('bob').getSnapshot().messages;
  assert.deepEqual(
    [failed?.state, failed?.body, failed?.waiting?.code, failed?.waiting?.canCancel],
    ['failed', 'x', 'refused', true],
  );
  const again = client.again(sending.cid);
  assert.notEqual(again?.cid, sending.cid);
  await settle();
  assert.deepEqual(sent('send')[1]?.body, 'x');
  assert.equal(client.stores.outbox.getSnapshot().length, 1);
});

test('an edit waits beside its message, and names it by seq and cid; a deletion too', async () => {
  const { client } = await online();
  const { cid } = client.send('bob', 'hi');
  ok(6);
  void client.edit('bob', 6, 'hi!');
  const store = client.stores.messages('bob');
  const [message] = store.getSnapshot().messages;
  assert.deepEqual([message?.body, message?.waiting?.kind, message?.waiting?.body], ['hi', 'edit', 'hi!']);
  assert.deepEqual(
    sent('edit').map(({ ref, refcid, body }) => [ref, refcid, body]),
    [[6, cid, 'hi!']],
  );
  ok(7);
  assert.deepEqual([store.getSnapshot().messages[0]?.body, store.getSnapshot().messages[0]?.waiting], ['hi!', null]);
  if (message) void client.delete('bob', message);
  ok(8);
  assert.deepEqual([store.getSnapshot().messages[0]?.body, store.getSnapshot().messages[0]?.deleted], [null, 2008]);
});

test('snapshots are the same objects where nothing changed, and who shows something else is not told', async () => {
  const { client } = await online([{ ...item({ head: 5 }) }, { ...item({ c: '13', peer: 'carol', head: 2 }) }]);
  const { messages, conversations, presence, line } = client.stores;
  socket().say(entry(6));
  const told = { bob: 0, carol: 0, list: 0, bobIn: 0, line: 0 };
  messages('bob').subscribe(() => {
    told.bob += 1;
  });
  messages('carol').subscribe(() => {
    told.carol += 1;
  });
  conversations.subscribe(() => {
    told.list += 1;
  });
  presence('bob').subscribe(() => {
    told.bobIn += 1;
  });
  line.subscribe(() => {
    told.line += 1;
  });
  const before = messages('bob').getSnapshot();
  const rows = conversations.getSnapshot();
  const carol = rows.find(({ peer }) => peer === 'carol');
  assert.equal(messages('bob').getSnapshot(), before);
  assert.equal(messages('bob'), messages('bob'));
  socket().say(entry(7));
  socket().say(entry(8));
  await settle();
  const after = messages('bob').getSnapshot();
  assert.deepEqual(told, { bob: 1, carol: 0, list: 1, bobIn: 0, line: 0 });
  assert.notEqual(after, before);
  assert.equal(after.messages[0], before.messages[0]);
  assert.equal(
    conversations.getSnapshot().find(({ peer }) => peer === 'carol'),
    carol,
  );
  socket().say(entry(8));
  await settle();
  assert.equal(told.bob, 1);
});

test('a listener that throws hurts nobody else, in events and stores', async () => {
  const { client } = await online();
  const errors = heard(client, 'error');
  const store = client.stores.messages('bob');
  client.on('entry', () => {
    throw new Error('a');
  });
  const entries = heard(client, 'entry');
  store.subscribe(() => {
    throw new Error('b');
  });
  let told = 0;
  store.subscribe(() => {
    told += 1;
  });
  socket().say(entry(6));
  await settle();
  assert.deepEqual([entries.length, told, errors.map((error) => (error as Error).message)], [1, 1, ['a', 'b']]);
});

test('an unsubscriber ends it, also for a function that listens twice', async () => {
  const { client } = await online();
  let told = 0;
  const fn = () => {
    told += 1;
  };
  const [first] = [client.on('entry', fn), client.on('entry', fn)];
  first?.();
  first?.();
  socket().say(entry(6));
  assert.equal(told, 1);
});

test('messages of others that are unread are told for notifications; read ones and own ones are not', async () => {
  const { client } = await online();
  const messages = heard(client, 'message');
  socket().say(entry(6));
  socket().say(entry(7, { from: 'alice', to: 'bob', cid: uuid() }));
  socket().say(entry(8, { kind: 'edit', ref: 6 }));
  assert.deepEqual(
    messages.map(({ seq, peer, epoch }) => [seq, peer, epoch]),
    [[6, 'bob', 'e1']],
  );
  assert.equal(client.stores.conversations.getSnapshot()[0]?.unread, 1);
  client.read('bob');
  assert.equal(client.stores.conversations.getSnapshot()[0]?.unread, 0);
});

test('unread messages that a cut line missed are told too, although the welcome has counted them', async () => {
  const { client, clock } = await online();
  const messages = heard(client, 'message');
  socket().end(1006);
  await clock.pass(1);
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 7, read: 6, unread: 1 })] });
  socket().say(entry(6));
  socket().say(entry(7));
  assert.deepEqual(
    messages.map(({ seq }) => seq),
    [7],
  );
  assert.equal(client.stores.conversations.getSnapshot()[0]?.unread, 1);
});

test('history: one page awaited, or all of it iterated over; an item that is malformed is stepped over', async () => {
  const { client } = await online();
  const plain = (seq: number): Json => {
    const { t: _, c: __, ...rest } = entry(seq);
    return rest;
  };
  const all: number[] = [];
  const done = (async () => {
    for await (const { seq } of client.history('bob', { limit: 2 })) all.push(seq);
  })();
  await settle();
  socket().say({
    t: 'ok',
    id: sent('history')[0]?.id,
    c: '12',
    entries: [plain(4), { seq: 'x' }, plain(5)],
    more: true,
    head: 5,
    floor: 1,
  });
  await settle();
  assert.deepEqual([sent('history')[1]?.before, sent('history')[1]?.limit], [4, 2]);
  socket().say({ t: 'ok', id: sent('history')[1]?.id, c: '12', entries: [plain(3)], more: false, head: 5, floor: 1 });
  await done;
  assert.deepEqual(all, [5, 4, 3]);
});

test('conversations: in pages', async () => {
  const { client } = await online();
  const all: string[] = [];
  const done = (async () => {
    for await (const { peer } of client.conversations({ limit: 1 })) all.push(peer);
  })();
  await settle();
  socket().say({ t: 'ok', id: sent('conversations')[0]?.id, conversations: [item()], cursor: 'x' });
  await settle();
  socket().say({ t: 'ok', id: sent('conversations')[1]?.id, conversations: [item({ c: '13', peer: 'carol' })] });
  await done;
  assert.deepEqual(
    [all, sent('conversations').map(({ cursor }) => cursor)],
    [
      ['bob', 'carol'],
      [undefined, 'x'],
    ],
  );
});

test('entries: each once and in order, for each reader; what was too much is fetched in between', async () => {
  const { client, clock } = await online();
  const readers = [client.entries(), client.entries()].map(async (stream) => {
    const seqs: number[] = [];
    for await (const { seq } of stream) {
      seqs.push(seq);
      if (seq === 10) break;
    }
    return seqs;
  });
  socket().say(entry(6));
  socket().end(1006);
  await clock.pass(1);
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 9, page: true })] });
  socket().say(entry(10));
  for (let done = 0; done < 2; done += 1) {
    await settle();
    const entries = [7, 8, 9, 10].map((seq) => ({ ...entry(seq), t: undefined, c: undefined }));
    for (const { id } of sent('history').slice(done))
      socket().say({ t: 'ok', id, c: '12', entries, more: false, head: 10, floor: 1 });
  }
  assert.deepEqual(await Promise.all(readers), [
    [6, 7, 8, 9, 10],
    [6, 7, 8, 9, 10],
  ]);
});

test('a stream that stop ended in the middle of a gap: the next one goes on, once', async () => {
  const { client, clock } = await online([{ ...item({ head: 5 }) }]);
  const streams = [client.entries(), client.entries()];
  socket().end(1012);
  await clock.pass(1);
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 9, page: true })] });
  const waiting = streams.map((one) => one.next());
  await settle();
  const page = (seqs: number[]) => {
    const entries = seqs.map((seq) => ({ ...entry(seq), t: undefined }));
    for (const { id } of sent('history'))
      socket().say({ t: 'ok', id, c: '12', entries, more: true, head: 9, floor: 1 });
  };
  page([6, 7]);
  assert.deepEqual(
    (await Promise.all(waiting)).map(({ value }) => value.seq),
    [6, 6],
  );
  await streams[1]?.next();
  await client.stop();
  await client.start();
  await settle();
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 9 })] });
  const rest = client.entries();
  const seventh = rest.next();
  await settle();
  assert.deepEqual(
    sent('history').map(({ after }) => after),
    [6],
    'from behind what the slower one has',
  );
  page([7, 8, 9]);
  const seqs = [await seventh, await rest.next(), await rest.next()].map(({ value }) => value.seq);
  assert.deepEqual(seqs, [7, 8, 9]);
  socket().say(entry(10));
  assert.equal((await rest.next()).value.seq, 10);
});

test('a page into the store: it says that it loads, acks what waited, and can be asked for again after a refusal', async () => {
  const { client, clock } = await online([{ ...item({ head: 5, unread: 5 }) }]);
  const store = client.stores.messages('bob');
  assert.deepEqual([store.getSnapshot().hasOlder, store.getSnapshot().isLoading], [true, false]);
  const refused = client.load('bob');
  assert.equal(client.load('bob'), refused, 'one at a time');
  assert.equal(store.getSnapshot().isLoading, true);
  await settle();
  socket().say({ t: 'err', id: sent('history')[0]?.id, code: 'internal' });
  await assert.rejects(refused, { code: 'internal' });
  const loaded = client.load('bob');
  await settle();
  const entries = [1, 2, 3, 4, 5].map((seq) => ({ ...entry(seq), t: undefined, c: undefined }));
  socket().say({ t: 'ok', id: sent('history')[1]?.id, c: '12', entries, more: false, head: 5, floor: 1 });
  await loaded;
  assert.deepEqual(
    [store.getSnapshot().messages.map(({ seq }) => seq), store.getSnapshot().hasOlder],
    [[1, 2, 3, 4, 5], false],
  );
  await clock.pass(100);
  assert.deepEqual(
    sent('ack').map(({ seq }) => seq),
    [5],
  );
});

test('presence and typing: shown while online, and typing ends by itself or with a message', async () => {
  const { client, clock } = await online();
  client.watch(['bob']);
  socket().say({ t: 'ok', id: sent('watch')[0]?.id, presence: [{ user: 'bob', state: 'online', v: 3 }] });
  assert.deepEqual(client.stores.presence('bob').getSnapshot(), { state: 'online', seen: null });
  socket().say({ t: 'presence', user: 'bob', state: 'offline', v: 2 });
  assert.equal(client.stores.presence('bob').getSnapshot()?.state, 'online', 'an older one replaces nothing');
  const typing = client.stores.typing('bob');
  socket().say({ t: 'typing', c: '12', from: 'bob', to: 'alice' });
  assert.equal(typing.getSnapshot(), true);
  await clock.pass(3000);
  socket().say({ t: 'typing', c: '12', from: 'bob', to: 'alice' });
  await clock.pass(5999);
  assert.equal(typing.getSnapshot(), true);
  await clock.pass(1);
  assert.equal(typing.getSnapshot(), false);
  socket().say({ t: 'typing', c: '12', from: 'bob', to: 'alice' });
  socket().say(entry(6));
  assert.equal(typing.getSnapshot(), false);
  socket().end(1006);
  assert.equal(client.stores.presence('bob').getSnapshot(), null);
});

test('typing is told at most every four seconds', async () => {
  const { client, clock } = await online();
  for (let i = 0; i < 5; i += 1) client.typing('bob');
  await clock.pass(4000);
  client.typing('bob');
  await settle();
  assert.equal(sent('typing').length, 2);
});

test('stop: who waits hears it, what waits stays, and start goes on', async () => {
  const { client } = await online();
  const sending = client.send('bob', 'x');
  const reader = (async () => {
    for await (const _ of client.entries());
    return 'ended';
  })();
  await client.stop();
  await assert.rejects(sending, { code: 'stopped' });
  assert.equal(await reader, 'ended');
  assert.deepEqual([client.stores.line.getSnapshot().state, client.stores.outbox.getSnapshot().length], ['stopped', 1]);
  await client.start();
  await settle();
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 5 })] });
  assert.deepEqual(
    sent('send').map(({ retry }) => retry),
    [true],
  );
});

test('the line: connecting, online, offline with a time, stopped with a reason that ends what waits', async () => {
  const { client, clock } = await online();
  const lines = heard(client, 'line');
  socket().end(4009);
  await clock.pass(1);
  socket().open();
  socket().say(WELCOME);
  const sending = client.send('bob', 'x');
  socket().end(4004);
  assert.deepEqual(
    lines.map(({ state, reason }) => [state, reason]),
    [
      ['offline', 'overloaded'],
      ['connecting', ''],
      ['online', ''],
      ['stopped', 'replaced'],
    ],
  );
  await assert.rejects(sending, { code: 'stopped', message: 'replaced' });
});

test('without a WebSocket it says so', async () => {
  const had = globalThis.WebSocket;
  Object.assign(globalThis, { WebSocket: undefined });
  const { clock } = made();
  const client = new ChatClient({ url: 'ws://x/ws', token: async () => 't', clock });
  await client.start();
  assert.deepEqual(client.stores.line.getSnapshot().reason, 'no_websocket');
  Object.assign(globalThis, { WebSocket: had });
});

test('a pong sets the server time right, and no step of the wall clock moves it', async () => {
  const { client, clock } = await online();
  assert.equal(client.now(), WELCOME.ts);
  await clock.pass(12000);
  assert.equal(sent('ping').length, 1);
  socket().say({ t: 'pong', id: sent('ping')[0]?.id, ts: (WELCOME.ts as number) + 15000 });
  assert.equal(client.now(), (WELCOME.ts as number) + 15000);
});

test('a restart of the log empties what is shown, and keeps what waits', async () => {
  const { client, clock } = await online();
  socket().say(entry(6));
  const resets = heard(client, 'reset');
  void client.send('bob', 'x');
  socket().end(1006);
  await clock.pass(1);
  socket().open();
  socket().say({ ...WELCOME, epoch: 'e2' });
  assert.deepEqual(resets, [{ reason: 'epoch' }]);
  assert.deepEqual(
    client.stores
      .messages('bob')
      .getSnapshot()
      .messages.map(({ body, state }) => [body, state]),
    [['x', 'sending']],
  );
});

test('messages that are read while more come stay in sight: the run ends before the log, and newer pages join it', async () => {
  const { client, clock } = await online();
  const store = client.stores.messages('bob');
  store.subscribe(() => {});
  socket().say(entry(6));
  socket().end(1006);
  await clock.pass(1);
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 700, page: true, unread: 694 })] });
  const { messages, hasNewer, missedTo, unread } = store.getSnapshot();
  assert.deepEqual([messages.map(({ seq }) => seq), hasNewer, missedTo, unread], [[6], true, 700, 694]);
});

test('what cannot succeed offers no second try, and its words are kept', async () => {
  const { client } = await online();
  void client.edit('bob', 3, 'too late');
  socket().say({ t: 'err', id: sent('edit')[0]?.id, code: 'too_late' });
  await settle();
  const [failed] = client.stores.outbox.getSnapshot();
  assert.deepEqual(
    [failed?.state, failed?.body, failed?.canRetry, failed?.canCancel],
    ['failed', 'too late', false, true],
  );
  assert.equal(client.again(failed?.cid ?? ''), null);
  assert.equal(await client.cancel(failed?.cid ?? ''), true);
  assert.deepEqual(client.stores.outbox.getSnapshot(), []);
});

test('the next message is typed: told at once, for the one before took the sign away', async () => {
  const { client } = await online();
  client.typing('bob');
  void client.send('bob', 'hi');
  client.typing('bob');
  client.typing('bob');
  await settle();
  assert.equal(sent('typing').length, 2);
});

test('white space around a token is no part of it', async () => {
  const { client } = await online(undefined, { token: async () => ' tok\n' });
  assert.equal(sent('hello')[0]?.token, 'tok');
  void client.refresh().catch(() => {});
  await settle();
  assert.equal(sent('refresh')[0]?.token, 'tok');
});

test('history goes on only where a page gets further: what repeats or steps back is passed over', async () => {
  const { client } = await online([{ ...item({ head: 9 }) }]);
  const seqs: number[] = [];
  const read = (async () => {
    for await (const { seq } of client.history('bob', { after: 2 })) seqs.push(seq);
  })();
  const page = [5, 3, 4, 4, 6, 2].map((seq) => entry(seq));
  for (let asked = 0; asked < 4; asked += 1) {
    await settle();
    const { id } = sent('history')[asked] ?? {};
    if (id !== undefined) socket().say({ t: 'ok', id, c: '12', entries: page, more: true, head: 9, floor: 1 });
  }
  await read;
  assert.deepEqual(seqs, [5, 6]);
});
