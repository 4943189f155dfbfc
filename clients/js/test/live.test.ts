/**
 * The client against a real chatd, over `ws`. tests/js/test_live.py starts one and says where in `CHATD_URL`; the tokens
 * of alice and bob are in `CHATD_TOKENS`. Without it nothing runs.
 */
import { afterEach, describe, expect, test, vi } from 'vitest';
import WebSocket from 'ws';
import { ChatClient, type LiveEntry } from '../src/index.js';
import { dice } from './dice.js';

const { CHATD_URL: url = '', CHATD_TOKENS = '{}' } = process.env;
const tokens: Record<string, string> = JSON.parse(CHATD_TOKENS);
const MESSAGES = 100;

/** All lines that are there, so that a test can cut them. */
const lines = new Set<WebSocket>();

class Cuttable extends WebSocket {
  constructor(address: string, protocol: string) {
    super(address, protocol);
    lines.add(this);
    this.once('close', () => lines.delete(this));
  }
}

const started: ChatClient[] = [];

async function connected(user: string): Promise<ChatClient> {
  const token = tokens[user] ?? '';
  const client = new ChatClient({ url, webSocket: Cuttable, token: async () => token });
  started.push(client);
  await client.start();
  await vi.waitFor(() => expect(client.stores.line.getSnapshot().state).toBe('online'));
  return client;
}

const wait = { timeout: 15_000, interval: 20 };

afterEach(async () => {
  for (const client of started.splice(0)) await client.stop();
});

describe.skipIf(url === '')('against a real chatd', () => {
  test('two people chat: entries, an edit, receipts, presence, typing, pages', async () => {
    const [alice, bob] = await Promise.all([connected('alice'), connected('bob')]);
    const heard: LiveEntry[] = [];
    bob.on('entry', (entry) => heard.push(entry));
    const { seq } = await alice.send('bob', 'hello');
    await vi.waitFor(() => expect(heard.at(-1)).toMatchObject({ seq, from: 'alice', body: 'hello' }), wait);
    await bob.send('alice', 'hi');
    await alice.edit('bob', seq, 'hello!');
    await vi.waitFor(() => expect(heard.at(-1)).toMatchObject({ kind: 'edit', ref: seq, body: 'hello!' }), wait);
    bob.read('alice');
    const own = () =>
      alice.stores
        .messages('bob')
        .getSnapshot()
        .messages.find((one) => one.seq === seq);
    await vi.waitFor(() => expect(own()).toMatchObject({ state: 'read', body: 'hello!' }), wait);
    alice.watch(['bob']);
    await vi.waitFor(() => expect(alice.stores.presence('bob').getSnapshot()).toMatchObject({ state: 'online' }), wait);
    bob.typing('alice');
    await vi.waitFor(() => expect(alice.stores.typing('bob').getSnapshot()).toBe(true), wait);
    expect((await alice.history('bob', { limit: 1 })).entries.some(({ body }) => body === 'hi')).toBe(true);
    expect((await alice.conversations()).conversations).toMatchObject([{ peer: 'bob' }]);
    await expect(alice.edit('bob', 999_999, 'x')).rejects.toMatchObject({ code: 'no_message' });
    await alice.refresh();
  });

  test(`${MESSAGES} messages over lines that are cut come once and in order`, async () => {
    const [alice, bob] = await Promise.all([connected('alice'), connected('bob')]);
    const heard: Array<string | null | undefined> = [];
    const listening = (async () => {
      for await (const { kind, from, body } of bob.entries())
        if (kind === 'message' && from === 'alice' && heard.push(body) === MESSAGES) return;
    })();
    const said = Array.from({ length: MESSAGES }, (_, n) => `message ${n}`);
    const sent = said.map((body) => alice.send('bob', body));
    const d = dice(Date.now());
    const cutting = setInterval(() => d.pick([...lines])?.terminate(), 150);
    setTimeout(() => clearInterval(cutting), 2_000);
    const seqs = (await Promise.all(sent)).map(({ seq }) => seq);
    await listening;
    clearInterval(cutting);
    expect(heard).toEqual(said);
    expect(seqs).toEqual(seqs.toSorted((a, b) => a - b));
    expect(new Set(seqs).size).toBe(MESSAGES);
  }, 60_000);
});
