/**
 * A client of the SDK that a test drives: the same in a tab and in Node.
 *
 *      command [name, ...arguments] ──► ask ──► answer
 *      whatever the client says     ──► tell([name, ...facts])
 *
 * `fault`: what it tells is falsified, to see that the judge finds it. `lose`, `double` and `swap` do it to every
 * seventh entry, `hide` to what is shown.
 */
const FAULT_EVERY = 7;
const PAGES_MAX = 1000;

export function drive(client, tell, fault = '') {
  client.on('gap', ({ c, after, head }) => tell(['gap', c, after, head]));
  client.on('line', ({ state, reason }) => tell(['line', state, reason]));
  client.on('role', (role) => tell(['role', role]));
  client.on('store', ({ reason }) => tell(['store', reason]));
  client.on('reset', ({ reason }) => tell(['fault', `reset: ${reason}`]));
  client.on('malformed', (frame) => tell(['fault', `malformed: ${JSON.stringify(frame)}`]));
  client.on('error', (error) => tell(['fault', `error: ${error}`]));
  void entries(client, falsified(tell, fault));
  const commands = { ...saying(client, tell), ...asking(client, fault) };
  return async ([name, ...args]) => commands[name](...args);
}

async function entries(client, tell) {
  for await (const { c, seq, ts, from, kind, ref, refcid, body = null, cid = null } of client.entries())
    tell(['got', c, seq, ts, from, kind, ref ?? refcid ?? null, body, cid]);
}

function saying(client, tell) {
  const said = (kind, peer, target, body, sending) => {
    const { cid } = sending;
    tell(['sent', cid, peer, kind, target, body]);
    sending.then(
      ({ c, seq, ts }) => tell(['acked', cid, c, seq, ts]),
      (error) => tell(['refused', cid, String(error.code ?? error)]),
    );
  };
  return {
    message: (peer, body) => said('message', peer, null, body, client.send(peer, body)),
    edit: (peer, target, body) => said('edit', peer, target, body, client.edit(peer, target, body)),
    delete: (peer, target) => said('delete', peer, target, null, client.delete(peer, target)),
  };
}

function asking(client, fault) {
  return {
    start: () => client.start(),
    stop: () => client.stop(),
    line: () => client.stores.line.getSnapshot().state,
    outbox: () => client.stores.outbox.getSnapshot().map(({ cid, state, code }) => [cid, state, code]),
    watch: (users) => client.watch(users),
    presence: (user) => client.stores.presence(user).getSnapshot(),
    /** What is held of a conversation now. */
    held: (peer) => client.stores.messages(peer).getSnapshot().messages.map(({ seq, from, body }) => [seq, from, body]),
    /** The whole conversation as the user sees it. */
    shown: (peer) => shown(client, peer, fault),
    /** Unread messages by peer: here, and as the server counts them. */
    unread: async () => {
      const here = client.stores.conversations.getSnapshot().map(({ peer, unread }) => [peer, unread]);
      const there = [];
      for await (const { peer, unread } of client.conversations()) there.push([peer, unread]);
      return [Object.fromEntries(here), Object.fromEntries(there)];
    },
  };
}

async function shown(client, peer, fault) {
  const store = client.stores.messages(peer);
  const leave = store.subscribe(() => {}); // what somebody looks at is kept whole
  try {
    for (let pages = 0; pages < PAGES_MAX; pages += 1) {
      const { hasOlder, hasNewer, messages } = store.getSnapshot();
      if (!hasOlder && !hasNewer) return lines(fault === 'hide' ? messages.slice(1) : messages);
      await client.load(peer, hasNewer ? 'newer' : 'older');
    }
    throw new Error(`${peer}: no end of pages`);
  } finally {
    leave();
  }
}

const lines = (messages) => messages.map(({ seq, from, body, waiting }) => [seq, from, body, waiting !== null]);

function falsified(tell, fault) {
  let n = 0;
  let kept = null;
  return (event) => {
    n += 1;
    const isIts = n % FAULT_EVERY === 0;
    if (fault === 'swap' && isIts) kept = event;
    else if (!(fault === 'lose' && isIts)) tell(event);
    if (fault === 'double' && isIts) tell(event);
    if (kept !== null && kept !== event) {
      tell(kept);
      kept = null;
    }
  };
}
