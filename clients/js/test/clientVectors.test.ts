/** Both clients against the vectors of chatd/conformance/vectors/client, and the runner against vectors that no client fulfils. */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { CoreClient } from '../src/core.js';
import { ChatClient, type ChatError } from '../src/index.js';
import { dice } from './dice.js';
import { ClientRunner, type Parts, type Subject } from './vectors/clientRunner.js';
import { type Fields, Mismatch } from './vectors/values.js';

const FOLDER = new URL('../../../chatd/conformance/vectors/client/', import.meta.url);

/** The client of this package; the jitter is the same each time. */
const subject =
  (Client: typeof CoreClient) =>
  ({ url, clock, WebSocket, token }: Parts): Subject => {
    const shown: Fields[] = [];
    let isOver = false;
    const client = new Client({
      url,
      clock,
      webSocket: WebSocket,
      device: 'sdk',
      random: dice(1).random,
      token: async (renew) => token(renew !== null),
    });
    const listen = async (): Promise<void> => {
      for await (const entry of client.entries()) shown.push({ ...entry });
    };
    void listen();
    client.on('line', ({ state }) => {
      isOver ||= state === 'stopped';
    });
    void client.start();
    const ask = (what: string, keys: Fields): { result?: Fields } => {
      const asked: { result?: Fields } = {};
      asking(client, what, keys).then(
        (result) => {
          asked.result = result;
        },
        ({ code }: ChatError) => {
          asked.result = { code };
        },
      );
      return asked;
    };
    return {
      ask,
      send: (to, body) => ask('send', { to, body }),
      shown: () => shown,
      hasEnded: () => isOver,
      stop: () => void client.stop(),
    };
  };

/** One of the words of docs/conformance.md. */
async function asking(client: CoreClient, what: string, { to, ref, seq, body, before }: Fields): Promise<Fields> {
  if (what === 'send') return { seq: (await client.send(to, body)).seq };
  if (what === 'edit') return { seq: (await client.edit(to, ref, body)).seq };
  if (what === 'delete') return { seq: (await client.delete(to, ref)).seq };
  if (what === 'history') return { entries: (await client.history(to, { before })).entries };
  client.read(to, seq);
  return {};
}

const vectors = readdirSync(FOLDER)
  .sort()
  .flatMap((file) => {
    const { vectors: all } = JSON.parse(readFileSync(new URL(file, FOLDER), 'utf8'));
    return all.map((one: Fields) => ({ ...one, file }));
  });

describe.each([ChatClient, CoreClient])('%o does as the vectors say', (Client) => {
  test.each(vectors)('$file: $name', ({ steps }) => new ClientRunner(subject(Client)).run(steps));
});

test('a wrong vector fails', async () => {
  const welcome = { welcome: { conversations: [{ c: '12', peer: 'bob', head: 0, floor: 1 }] } };
  const entry = { t: 'entry', c: '12', seq: 1, ts: 1, from: 'bob', to: 'alice', kind: 'message', body: 'hi' };
  const wrong = [
    [welcome, { server: entry }, { shows: [{ seq: 1, body: 'ho' }] }],
    [welcome, { close: 4006 }, { does: 'reconnect', hello: { cursors: { 12: 1 } } }],
    [welcome, { app: { send: 'hi', to: 'bob' } }, { client: { t: 'send', retry: true } }],
    [welcome, { close: 4004 }, { does: 'reconnect' }],
    [{ storm: [4006], for_ms: 5000, at_most: 1 }],
  ];
  for (const steps of wrong) await expect(new ClientRunner(subject(ChatClient)).run(steps)).rejects.toThrow(Mismatch);
});
