/** Who the user is, and tokens for it. */

import { expect, test } from 'vitest';
import { Host } from '../src/state/host';
import { SignIn } from '../src/state/signin';

interface Reply {
  status?: number;
  body?: Record<string, unknown> | null;
}

function signIn(answer: (url: string) => Reply, told = 'name') {
  const asked: unknown[] = [];
  const it = new SignIn(async (url, init) => {
    asked.push([url, (init.headers as Record<string, string>)['X-Chatd-Dev']]);
    const { status = 200, body = {} } = answer(url);
    const json = async () => {
      if (body === null) throw new SyntaxError('no JSON');
      return body;
    };
    return { status, json } as Response;
  }, told);
  return { it, asked };
}

test('a name gets a token from a development server; the first is used once it is there, a renewal asks anew', async () => {
  let n = 0;
  const { it, asked } = signIn(() => {
    n += 1;
    return { body: { token: `t${n}`, user: 'a&b' } };
  });
  expect(await it.enter({ name: 'a&b' })).toEqual({ fault: null, mode: 'name', user: 'a&b' });
  const tokens = [await it.token(null), await it.token(null), await it.token('token_expired'), await it.token(null)];
  expect(tokens).toEqual(['t1', 't1', 't2', 't2']);
  expect(asked.at(-1)).toEqual(['dev/token?user=a%26b', '1']);
});

test('404: a token is asked for, used, and not used again once it was refused', async () => {
  const { it } = signIn(() => ({ status: 404, body: null }));
  expect((await it.enter({ name: 'alice' })).mode).toBe('token');
  await it.enter({ token: 'mine' });
  expect([await it.token(null), await it.token('refresh')]).toEqual(['mine', null]);
  await it.enter({ token: 'newer' });
  expect([await it.token('token_expired'), await it.token('token_expired')]).toEqual(['newer', null]);
});

test('how somebody signs in is told by the document, and how the user of now did by what let them in', async () => {
  expect(['token', 'name'].map((told) => signIn(() => ({}), told).it.mode)).toEqual(['token', 'name']);
  const { it } = signIn(() => ({ body: { token: 't' } }));
  const known = [it.known];
  await it.enter({ name: 'alice' });
  known.push(it.known);
  it.embedded(new Host({ parent: { postMessage() {} }, addEventListener() {} }), 'x.y.z');
  known.push(it.known);
  it.leave();
  known.push(it.known);
  expect(known).toEqual(['token', 'name', 'host', 'token']);
});

test('a refused name is said; a server that is away is no refusal of the token', async () => {
  const { it } = signIn((url) =>
    url.includes('bad') ? { status: 400, body: { error: 'no such' } } : { body: { token: 't' } },
  );
  expect((await it.enter({ name: 'bad' })).fault).toBe('no such');
  const away = new SignIn(async () => {
    throw new TypeError('network');
  }, 'name');
  expect((await away.enter({ name: 'x' })).fault).toMatch(/does not answer/);
  away.resume({ name: 'x' });
  await expect(away.token('refresh')).rejects.toThrow('network');
  const broken = signIn(() => ({ status: 500, body: null })).it;
  broken.resume({ name: 'x' });
  await expect(broken.token('refresh')).rejects.toThrow('500');
});

test('whose cache to show is what the token says, and nobody where it says nothing', () => {
  const { it } = signIn(() => ({}));
  const named = (claims: object) => `x.${btoa(JSON.stringify(claims)).replace(/\+/g, '-').replace(/\//g, '_')}.y`;
  expect(it.resume({ token: named({ sub: 'alice' }) })).toBe('alice');
  for (const token of [named({}), named({ sub: 3 }), 'x.y', '', 'a.!.c']) expect(it.resume({ token })).toBe('');
});
