/** What to say about the line. Pure. */

import type { Line } from '@chatd/client';
import { seconds } from './times';

export interface Banner {
  readonly text: string;
  readonly kind: 'calm' | 'busy' | 'bad';
  readonly action: 'again' | 'reload' | null;
  readonly label: string;
}

const PROTOCOL: Banner = {
  text: 'This page and the server do not understand each other. A newer page may.',
  kind: 'bad',
  action: 'reload',
  label: 'Reload',
};
const STOPPED: Readonly<Record<string, Banner>> = {
  replaced: { text: 'This chat goes on in another window.', kind: 'bad', action: 'again', label: 'Use it here' },
  too_many_devices: {
    text: 'You are connected on too many devices; this one was let go.',
    kind: 'bad',
    action: 'again',
    label: 'Connect again',
  },
};
const WAITING: Readonly<Record<string, string>> = {
  restart: 'The server is restarting.',
  rate_limited: 'The server asked for a pause.',
  overloaded: 'The server is busy.',
};
/** These end a session: the sign-in says so. */
const SIGN_IN = ['', 'unauthorized', 'token_expired', 'refresh'];

/** The line needs the user: another token. */
export function isSignInNeeded({ state, reason }: Line): boolean {
  return state === 'stopped' && reason !== '' && SIGN_IN.includes(reason);
}

/** Null where there is nothing to say. `now`: of the same clock as `retryAt`. */
export function bannerOf({ state, reason, retryAt, msg }: Line, now: number): Banner | null {
  if (state === 'online' && reason === 'restart') {
    return { text: 'The server is restarting. You will be back in a moment.', kind: 'calm', action: null, label: '' };
  }
  if (state === 'online') return null;
  if (state === 'stopped') return SIGN_IN.includes(reason) ? null : (STOPPED[reason] ?? PROTOCOL);
  if (state === 'connecting') return { text: 'Connecting…', kind: 'busy', action: null, label: '' };
  const left = retryAt - now;
  const isRefused = msg !== undefined && SIGN_IN.includes(reason);
  const why = isRefused ? `The server refuses the token: ${msg}.` : (WAITING[reason] ?? 'No connection.');
  if (left < 1000) return { text: `${why} Trying again…`, kind: 'busy', action: null, label: '' };
  return { text: `${why} Trying again in ${seconds(left)}.`, kind: 'busy', action: 'again', label: 'Try now' };
}
