/**
 * The page's client without the page, against a real server: `node --experimental-websocket live.mjs URL TOKEN DEVICE PEER`.
 * A line that comes in is sent to the peer as a message. After each change a line goes out that says how things stand.
 */
import readline from 'node:readline';
import { Client } from '../../chatd/web/client.js';
import { History } from '../../chatd/web/history.js';
import { Model } from '../../chatd/web/model.js';

const [url, token, device, peer] = process.argv.slice(2);
const clock = { now: () => Date.now(), set: (fn, ms) => setTimeout(fn, ms), clear: (handle) => clearTimeout(handle) };
let isDue = false;

class Page extends Model {
  resets = 0;
  twice = [];
  #given = new Set();

  reset() {
    this.resets += 1;
    this.#given.clear();
    super.reset();
  }

  entry(entry, how) {
    const place = `${entry.c}/${entry.seq}`;
    if (how === 'live' && this.#given.has(place)) this.twice.push(place);
    this.#given.add(place);
    super.entry(entry, how);
  }
}

const changed = () => {
  if (!isDue) setImmediate(tell);
  isDue = true;
};
const model = new Page({ now: () => clock.now(), changed, pending: (user) => client.outbox.of(user), store: changed });
const client = new Client({
  url, device, sink: model, token: async () => token, WebSocket: globalThis.WebSocket, clock, uuid: () => crypto.randomUUID(),
});
const history = new History({ client, model, clock });

function tell() {
  isDue = false;
  const it = model.conversations.get(peer);
  if (model.isLive && it?.log.more) history.older(peer);
  const shown = (it?.log.messages() ?? []).map(({ seq, ts, from, body }) => [seq, ts, from, body]);
  const { resets, twice, isLive } = model;
  const failed = client.outbox.of(peer).filter(({ state }) => state === 'failed').length;
  const facts = { isLive, resets, twice, shown, unsent: client.outbox.of(peer).length, failed, unread: it?.unread ?? 0, epoch: client.places.epoch };
  process.stdout.write(`${JSON.stringify(facts)}\n`);
}

readline.createInterface({ input: process.stdin }).on('line', (body) => client.send(peer, body)).on('close', () => process.exit(0));
client.connect();
