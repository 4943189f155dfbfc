/**
 * Many driven clients in one process, by lines of JSON.
 *
 *      in     [client, id, name, ...arguments]
 *      out    [client, 0, event, ...facts]    [client, id, answer]    [client, id, null, error]
 *
 * The first line in is the list of clients: {url, token, user, device, fault}.
 */
import { createInterface } from 'node:readline';
import { ChatClient } from '@chatd/client';
import { WebSocket } from 'ws';
import { drive } from './driven.js';

const say = (...line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let clients = null;

createInterface({ input: process.stdin }).on('line', (line) => {
  const said = JSON.parse(line);
  if (clients) void answer(said);
  else clients = said.map(one);
});

function one({ url, token, user, device, fault }, n) {
  const client = new ChatClient({ url, token: async () => token, user, device, webSocket: WebSocket });
  return drive(client, (event) => say(n, 0, ...event), fault);
}

async function answer([n, id, ...command]) {
  try {
    say(n, id, (await clients[n](command)) ?? null);
  } catch (error) {
    say(n, id, null, String(error.code ?? error));
  }
}
