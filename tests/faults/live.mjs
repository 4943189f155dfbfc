/**
 * The TypeScript SDK, as the page has it, against a real server: `node live.mjs URL TOKEN DEVICE USER PEER`. A line that comes
 * in is sent to the peer as a message. After each change a line goes out that says how things stand. The SDK is built before.
 */
import readline from 'node:readline';
import { ChatClient } from '../../clients/js/dist/index.js';

const [url, token, device, user, peer] = process.argv.slice(2);
// Node has a global WebSocket since 22
const webSocket = globalThis.WebSocket ?? (await import('ws')).WebSocket;
const client = new ChatClient({ url, user, device, webSocket, token: async () => token });
const { conversations, line, messages, outbox } = client.stores;
const twice = [];
const given = new Set();
let resets = 0;
let isDue = false;

client.on('reset', () => {
  resets += 1;
  given.clear();
});
client.on('entry', ({ c, seq }) => {
  const place = `${c}/${seq}`;
  if (given.has(place)) twice.push(place);
  given.add(place);
});

const changed = () => {
  if (!isDue) setImmediate(tell);
  isDue = true;
};

function tell() {
  isDue = false;
  const isLive = line.getSnapshot().state === 'online';
  const view = messages(peer).getSnapshot();
  if (isLive && view.hasOlder && !view.isLoading) client.load(peer, 'older').catch(() => {});
  const shown = view.messages
    .filter(({ seq }) => seq !== null)
    .map(({ seq, ts, from, body }) => [seq, ts, from, body]);
  const waiting = outbox.getSnapshot().filter((one) => one.peer === peer);
  const failed = waiting.filter(({ state }) => state === 'failed').length;
  const facts = { isLive, resets, twice, shown, unsent: waiting.length, failed, unread: view.unread };
  process.stdout.write(`${JSON.stringify(facts)}\n`);
}

for (const store of [conversations, line, messages(peer), outbox]) store.subscribe(changed);
readline
  .createInterface({ input: process.stdin })
  .on('line', (body) => client.send(peer, body).catch(() => {})) // `failed` tells
  .on('close', () => process.exit(0));
await client.start();
