/** The application that shows the page in a frame: it alone is listened to. */

import { afterEach, expect, test, vi } from 'vitest';
import { type Framed, Host } from '../src/state/host';
import { SignIn } from '../src/state/signin';

afterEach(() => void vi.useRealTimers());

function framed() {
  const asked: unknown[] = [];
  const heard = new Set<(event: MessageEvent) => void>();
  const parent = { postMessage: (message: unknown) => void asked.push(message) };
  const window: Framed = {
    parent,
    addEventListener: (_, listener, { signal }) => {
      heard.add(listener);
      signal.addEventListener('abort', () => heard.delete(listener));
    },
  };
  const say = (data: unknown, source: unknown = parent) => {
    for (const listener of [...heard]) listener({ source, data } as MessageEvent);
  };
  return { window, asked, heard, say, host: Host.of(window) as Host };
}

test('a page in no frame has no host', () => {
  const window = { addEventListener: () => {} } as unknown as { parent: unknown };
  window.parent = window;
  expect(Host.of(window as unknown as Framed)).toBeNull();
});

test('a token is asked of the parent, and taken from nobody else', async () => {
  const { host, asked, heard, say } = framed();
  const token = host.token('token_expired');
  expect(asked).toEqual([{ type: 'chatd:token?', renew: 'token_expired' }]);
  say({ type: 'chatd:token', token: 'forged' }, { postMessage: () => {} });
  say({ type: 'chatd:token', token: 'forged' }, null);
  for (const noise of [null, 'x', { type: 'other', token: 'noise' }]) say(noise);
  say({ type: 'chatd:token', token: 'right' });
  expect([await token, heard.size]).toEqual(['right', 0]);
});

test('a host that has none for this user, or answers nonsense: null', async () => {
  const { host, say } = framed();
  for (const token of [null, '', 3, undefined]) {
    const answer = host.token(null);
    say({ type: 'chatd:token', token });
    expect(await answer).toBeNull();
  }
});

test('a host that does not answer', async () => {
  vi.useFakeTimers();
  const { host, heard } = framed();
  const answer = host.token(null);
  const rejected = expect(answer).rejects.toThrow('gives no token');
  await vi.advanceTimersByTimeAsync(5000);
  await rejected;
  expect(heard.size).toBe(0);
});

test('with a host, a renewal asks it again, and nobody else', async () => {
  const { host, asked, say } = framed();
  const signIn = new SignIn(() => Promise.reject(new Error('not asked')), 'token');
  const first = `x.${btoa('{"sub":"alice"}')}.y`;
  expect(signIn.embedded(host, first)).toBe('alice');
  expect([await signIn.token(null), asked.length]).toEqual([first, 0]);
  const renewed = signIn.token('token_expired');
  say({ type: 'chatd:token', token: 'second' });
  expect([await renewed, await signIn.token(null), asked.length]).toEqual(['second', 'second', 1]);
});
