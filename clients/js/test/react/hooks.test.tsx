/** The hooks in React itself: each shows its store, and nothing is rendered again for what it does not show. */
import { act, StrictMode, Suspense, startTransition, use, useState } from 'react';
import { renderToString } from 'react-dom/server';
import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  ChatProvider,
  useChat,
  useConnection,
  useConversation,
  useConversations,
  useMessages,
  usePresence,
  useSend,
  useTyping,
} from '../../src/react.js';
import { Rig } from './rig.js';

let rig: Rig;

beforeEach(() => {
  rig = new Rig();
});

afterEach(async () => {
  await rig.end();
  expect(rig.errors).toEqual([]);
});

function Line() {
  rig.count('Line');
  return <i id="line">{useConnection().state}</i>;
}

function List() {
  rig.count('List');
  return <i id="list">{useConversations().map(({ peer, unread }) => `${peer}:${unread} `)}</i>;
}

function Unread() {
  rig.count('Unread');
  return <i id="unread">{useConversations((all) => all.reduce((sum, { unread }) => sum + unread, 0))}</i>;
}

function Row({ peer }: { peer: string }) {
  rig.count(`Row ${peer}`);
  return <i id={`row-${peer}`}>{useConversation(peer)?.last?.body ?? '-'}</i>;
}

let older: (() => Promise<void>) | undefined;
let send: ReturnType<typeof useSend> | undefined;

function Log({ peer }: { peer: string }) {
  rig.count(`Log ${peer}`);
  const { messages, hasOlder, loadOlder } = useMessages(peer);
  older = loadOlder;
  send = useSend(peer);
  return <i id="log">{`${messages.length} ${messages.at(-1)?.body} ${messages.at(-1)?.state} ${hasOlder}`}</i>;
}

function Person({ peer }: { peer: string }) {
  rig.count(`Person ${peer}`);
  const presence = usePresence(peer);
  const [isTyping] = useTyping(peer);
  return <i id={`person-${peer}`}>{`${presence?.state ?? 'unknown'}${isTyping ? ' typing' : ''}`}</i>;
}

const text = (id: string) => rig.box.querySelector(`#${id}`)?.textContent;

/** Both have sent, so presence and typing flow. */
async function talk(peer: string, count = 1) {
  rig.chatd.say('alice', peer, `to ${peer}`);
  rig.chatd.say(peer, 'alice', ...Array.from({ length: count }, (_, n) => `m${n + 1}`));
}

test('what a component shows is what the client holds; the newest messages come by themselves, older ones on demand', async () => {
  await talk('bob', 70);
  await rig.render(
    <>
      <Line />
      <List />
      <Log peer="bob" />
    </>,
  );
  expect([text('line'), text('list')]).toEqual(['online', 'bob:70 ']);
  expect(text('log')).toBe('71 m70 received false');
});

test('a page of older messages is asked for', async () => {
  for (const _ of [1, 2]) await talk('bob', 70);
  await rig.render(<Log peer="bob" />);
  expect(text('log')).toBe('100 m70 received true');
  const loadOlder = older;
  await act(async () => {
    void older?.();
    await rig.clock.pass(1000);
  });
  expect(text('log')).toBe('142 m70 received false');
  expect(older).toBe(loadOlder);
});

test('the newest messages are asked for again where the server refused them for a while', async () => {
  await talk('bob', 3);
  let refused = 0;
  rig.chatd.fault = (_session, { t }) => {
    if (t !== 'history' || refused > 0) return undefined;
    refused += 1;
    return { code: 'overloaded', retry_ms: 1 };
  };
  await rig.render(<Log peer="bob" />);
  expect(refused).toBe(1);
  await act(() => new Promise((resolve) => setTimeout(resolve, 1100)));
  await rig.pass();
  expect(text('log')).toBe('4 m3 received false');
});

test('what is sent is shown at once, and how far it has got', async () => {
  await talk('bob');
  await rig.render(<Log peer="bob" />);
  const first = send;
  rig.chatd.fault = (_session, { t }) => (t === 'send' ? { delayMs: 50 } : undefined);
  act(() => void send?.('hello'));
  expect(text('log')).toBe('2 m1 received false');
  await act(async () => {});
  expect(text('log')).toBe('3 hello sending false');
  await rig.pass();
  expect(text('log')).toBe('3 hello sent false');
  expect(send).toBe(first);
});

test('nothing is rendered again for what it does not show', async () => {
  await talk('bob');
  await talk('carol');
  await rig.render(
    <>
      <Line />
      <Unread />
      <Row peer="bob" />
      <Row peer="carol" />
      <Log peer="bob" />
      <Person peer="carol" />
    </>,
  );
  await act(async () => rig.client.read('carol', 2));
  rig.counted();
  await act(async () => {
    rig.chatd.say('bob', 'alice', 'again');
    await rig.clock.pass(100);
  });
  expect([text('row-bob'), text('row-carol')]).toEqual(['again', expect.any(String)]);
  expect(rig.counted()).toEqual({ Unread: 1, 'Row bob': 1, 'Log bob': 1 });
  const bob = rig.make('bob');
  await act(async () => {
    await bob.start();
    await rig.clock.pass(500);
  });
  rig.counted();
  await act(async () => {
    bob.typing('alice');
    await rig.clock.pass(100);
  });
  expect(rig.counted()).toEqual({});
  await bob.stop();
});

test('presence and typing are shown as long as somebody shows them', async () => {
  await talk('bob');
  const bob = rig.make('bob');
  await bob.start();
  await rig.clock.pass(500);
  await rig.render(<Person peer="bob" />);
  expect(text('person-bob')).toBe('online');
  rig.counted();
  await act(async () => {
    bob.typing('alice');
    await rig.clock.pass(100);
  });
  expect(text('person-bob')).toBe('online typing');
  await rig.pass(7000);
  expect(text('person-bob')).toBe('online');
  expect(rig.counted()).toEqual({ 'Person bob': 2 });
  const watched: string[][] = [];
  rig.client.watch = (users) => void watched.push([...users]);
  await rig.render(<Line />);
  expect(watched).toEqual([[]]);
  await bob.stop();
});

test('components that show the same people, or change places, are one watch list', async () => {
  const watched: string[][] = [];
  rig.client.watch = (users) => void watched.push([...users]);
  await rig.render(
    <>
      <Person peer="bob" />
      <Person peer="carol" />
      <Person peer="bob" />
    </>,
    true,
  );
  expect(watched).toEqual([['bob', 'carol']]);
  await rig.render(
    <>
      <Person peer="carol" />
      <Person peer="bob" />
    </>,
    true,
  );
  expect(watched).toHaveLength(1);
});

test('StrictMode: one connection, one page of history', async () => {
  await talk('bob', 3);
  const asked: unknown[] = [];
  rig.chatd.fault = (_session, { t }) => void asked.push(t);
  await rig.render(
    <>
      <Line />
      <Log peer="bob" />
      <Person peer="bob" />
    </>,
    true,
  );
  expect(text('log')).toBe('4 m3 received false');
  expect(asked.filter((t) => t === 'hello' || t === 'history')).toEqual(['hello', 'history']);
  expect(rig.chatd.sessions).toHaveLength(1);
});

let slow: Promise<void>;
let goSlow: (() => void) | undefined;

function Slow() {
  use(slow);
  return null;
}

function Halves() {
  const [isSlow, setSlow] = useState(false);
  goSlow = () => startTransition(() => setSlow(true));
  return (
    <Suspense>
      <Row peer="bob" />
      <b id="again">
        <Row peer="bob" />
      </b>
      {isSlow && <Slow />}
    </Suspense>
  );
}

test('concurrent rendering: what comes in the middle of a transition tears nothing', async () => {
  await talk('bob');
  let arrived = () => {};
  slow = new Promise((resolve) => {
    arrived = resolve;
  });
  await rig.render(<Halves />);
  await act(async () => goSlow?.());
  await act(async () => {
    rig.chatd.say('bob', 'alice', 'in the middle');
    await rig.clock.pass(100);
  });
  expect([text('row-bob'), text('again')]).toEqual(['in the middle', 'in the middle']);
  await act(async () => arrived());
  expect([text('row-bob'), text('again')]).toEqual(['in the middle', 'in the middle']);
});

test('a server renders what nobody knows yet, starts nothing, and the page takes it over without a difference', async () => {
  await talk('bob', 2);
  const page = (
    <>
      <Line />
      <List />
      <Unread />
      <Log peer="bob" />
      <Person peer="bob" />
    </>
  );
  const html = renderToString(<StrictMode>{page && rig.tree(page)}</StrictMode>);
  expect(html).toContain('<i id="line">stopped</i>');
  expect(rig.chatd.sessions).toHaveLength(0);
  await rig.client.start(); // the page knows something before it takes over
  await rig.clock.pass(500);
  const differences: unknown[] = [];
  rig.box.innerHTML = renderToString(rig.tree(page));
  expect(rig.box.querySelector('#line')?.textContent).toBe('stopped');
  await rig.hydrate(page, (error) => differences.push(error));
  await rig.pass(500);
  expect([text('line'), text('log')]).toEqual(['online', '3 m2 received false']);
  expect(differences).toEqual([]);
});

test('a hook without a provider says so', () => {
  expect(() => renderToString(<Line />)).toThrow('no <ChatProvider> above');
});

let client: unknown;

function Client() {
  client = useChat();
  return null;
}

test('with start={false} the application starts the client', async () => {
  expect(
    renderToString(
      <ChatProvider client={rig.client} start={false}>
        <Client />
      </ChatProvider>,
    ),
  ).toBe('');
  expect(client).toBe(rig.client);
  await act(async () => {});
  expect(rig.chatd.sessions).toHaveLength(0);
});
