/** What is said about the line. */

import type { Line } from '@chatd/client';
import { expect, test } from 'vitest';
import { bannerOf, isSignInNeeded } from '../src/pure/banner';

const line = (state: string, reason = '', retryAt = 0) => ({ state, reason, retryAt }) as Line;
const say = (state: string, reason = '', retryAt = 0) => bannerOf(line(state, reason, retryAt), 1000);

test('silent while all is well, says what is the matter and what can be done', () => {
  expect(say('online')).toBeNull();
  expect(say('waiting', 'lost', 6000)).toMatchObject({ text: 'No connection. Trying again in 5 s.', action: 'again' });
  expect(say('waiting', 'lost', 1500)?.action).toBeNull();
  expect(say('online', 'restart')?.text).toMatch(/restart/);
  expect(say('stopped', 'replaced')?.text).toMatch(/another window/);
  expect(say('stopped', 'protocol')?.action).toBe('reload');
  expect(say('stopped', 'something new')?.kind).toBe('bad');
  expect(say('connecting')?.kind).toBe('busy');
});

test('a token that is refused and replaced each time: the banner says why, as no sign-in helps', () => {
  const refused = { ...line('offline', 'unauthorized', 6000), msg: 'it has no `exp`' };
  expect(bannerOf(refused, 1000)?.text).toBe('The server refuses the token: it has no `exp`. Trying again in 5 s.');
});

test('a token that is refused leads to the sign-in, which says so instead', () => {
  for (const reason of ['unauthorized', 'token_expired', 'refresh']) {
    expect([isSignInNeeded(line('stopped', reason)), say('stopped', reason)]).toEqual([true, null]);
  }
  expect([isSignInNeeded(line('stopped')), isSignInNeeded(line('stopped', 'replaced'))]).toEqual([false, false]);
  expect(isSignInNeeded(line('waiting', 'unauthorized'))).toBe(false);
});
