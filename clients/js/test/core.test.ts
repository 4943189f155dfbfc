/** The client that shows nothing, over a WebSocket that is answered by hand. What both do has its tests at `ChatClient`. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'vitest';
import { CoreClient } from '../src/core.js';
import { entry, FakeSocket, item, optionsOf, sent, settle, socket, TestClock, WELCOME } from './fakes.js';

beforeEach(() => {
  FakeSocket.made = [];
});

async function online() {
  const clock = new TestClock(1000);
  const heard: string[] = [];
  const client = new CoreClient(optionsOf(clock));
  for (const event of ['entry', 'message', 'receipt', 'presence', 'error'] as const)
    client.on(event, () => heard.push(event));
  await client.start();
  await settle();
  socket().open();
  socket().say({ ...WELCOME, conversations: [item({ head: 5, read: 3 })] });
  return { clock, client, heard };
}

test('hello asks for no presence, and what comes of it all the same is passed over', async () => {
  const { heard } = await online();
  const hello = { t: 'hello', v: 1, token: 'tok', device: 'd', features: [], id: 1 };
  assert.deepEqual(sent('hello')[0], hello);
  socket().say({ t: 'presence', user: 'bob', state: 'online', v: 3 });
  assert.deepEqual(heard, []);
});

test('a sending is sent, and gets no further; an edit by its cid goes out', async () => {
  const { client } = await online();
  const sending = client.send('bob', 'hi');
  assert.equal(sending.state, 'sending');
  socket().say({ t: 'ok', id: sent('send')[0]?.id, c: '12', seq: 6, ts: 7 });
  assert.equal((await sending).seq, 6);
  socket().say({ t: 'receipt', c: '12', from: 'bob', to: 'alice', delivered: 6, read: 6 });
  assert.equal(sending.state, 'sent');
  void client.edit('bob', sending.cid, 'ho');
  assert.deepEqual([sent('edit')[0]?.refcid, sent('edit')[0]?.body], [sending.cid, 'ho']);
});

test('a message is one that no cursor has passed; read without a seq means all that came', async () => {
  const { clock, client, heard } = await online();
  socket().say(entry(6));
  assert.deepEqual(heard, ['entry', 'message']);
  client.read('bob', 7); // read on another device, where it came first
  socket().say(entry(7));
  assert.deepEqual(heard, ['entry', 'message', 'entry']);
  await clock.pass(100);
  socket().say(entry(8));
  client.read('bob');
  socket().say({ t: 'ok', id: sent('read')[0]?.id, c: '12', delivered: 7, read: 7 });
  await clock.pass(100);
  assert.deepEqual(
    sent('read').map(({ seq }) => seq),
    [7, 8],
  );
});
