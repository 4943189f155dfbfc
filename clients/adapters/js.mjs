/**
 * The TypeScript SDK behind the line protocol of docs/conformance.md. Build the SDK before:
 *
 *     npm run build -w clients/js
 *     chatd conformance --client "node clients/adapters/js.mjs"
 */
import { createInterface } from 'node:readline';
import { CoreClient } from '../js/dist/core.js';

const say = (event, keys = {}) => process.stdout.write(`${JSON.stringify({ event, ...keys })}\n`);
// Node has a global WebSocket since 22
const webSocket = globalThis.WebSocket ?? (await import('ws')).WebSocket;

/** Give all entries, until the client has stopped. */
async function show(client) {
  for await (const entry of client.entries()) say('entry', entry);
}

const outcome = (n, promise, keys) =>
  promise.then(
    (value) => say('done', { n, ...keys(value) }),
    (error) => say('refused', { n, code: error.code }),
  );
const seq = (sent) => ({ seq: sent.seq });

let client;
const commands = {
  connect({ url, user, token, new_token }) {
    client = new CoreClient({
      url,
      user,
      device: 'adapter',
      webSocket,
      token: async (renew) => (renew ? new_token : token),
    });
    client.on('line', (line) => line.state === 'stopped' && say('ended', { code: line.code }));
    show(client);
    return client.start();
  },
  send: ({ n, to, body }) => outcome(n, client.send(to, body), seq),
  edit: ({ n, to, ref, body }) => outcome(n, client.edit(to, ref, body), seq),
  delete: ({ n, to, ref }) => outcome(n, client.delete(to, ref), seq),
  read({ n, to, seq }) {
    client.read(to, seq);
    say('done', { n });
  },
  history: ({ n, to, before }) => outcome(n, client.history(to, { before }), ({ entries }) => ({ entries })),
  async close() {
    await client?.stop();
    process.exit(0);
  },
};

say('ready', { name: 'chatd TypeScript SDK', can: ['send', 'edit', 'delete', 'read', 'history'] });
for await (const line of createInterface({ input: process.stdin })) {
  const { do: what, ...keys } = JSON.parse(line);
  Promise.resolve(commands[what](keys)).catch((error) => say('log', { text: String(error) }));
}
process.exit(0);
