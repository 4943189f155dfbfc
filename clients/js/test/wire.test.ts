/** Rules of text and names, back-off, and what a close asks for. */

import assert from 'node:assert/strict';
import { test } from 'vitest';
import { parseFrame } from '../src/frames.js';
import {
  afterClose,
  BACKOFF_MAX_MS,
  Backoff,
  bodyBytes,
  cleanBody,
  cleanName,
  cleanUser,
  fitting,
} from '../src/wire.js';

test('bytes are counted as UTF-8', () => {
  assert.equal(bodyBytes('aé€😀'), 1 + 2 + 3 + 4);
});

test('a body keeps what was typed, but for what the server refuses', () => {
  assert.equal(cleanBody('a\r\nb\rc\td'), 'a\nb\nc\td');
  assert.equal(cleanBody('x\u0000\u0007\u007f\u0085y'), 'xy');
  assert.equal(cleanBody('\ud800a\udc00 😀'), '\ufffda\ufffd 😀');
  assert.equal(cleanBody('  <b>&amp;</b>\u202e '), '  <b>&amp;</b>\u202e ');
});

test('user ids: 1 to 64 visible characters in NFC', () => {
  assert.equal(cleanUser('  bob '), 'bob');
  assert.equal(cleanUser('e\u0301'), '\u00e9');
  assert.equal(cleanUser('😀'.repeat(64)), '😀'.repeat(64));
  assert.equal(cleanUser('<img src=x onerror=alert(1)>'), '<img src=x onerror=alert(1)>');
  const bad = [
    '',
    '   ',
    'a'.repeat(65),
    'a\u202eb',
    'a\nb',
    'a\u00a0b',
    'a\u2028b',
    '\ud800',
    '\u3164',
    '\u2800',
    'a\u034fb',
    '\u2764\ufe0f',
    '\ue000',
  ];
  for (const text of bad) assert.equal(cleanUser(text), null, JSON.stringify(text));
});

test('what only the server can judge is not refused here: joiners, and what is not of this Unicode', () => {
  for (const text of [
    '\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645',
    '\u0d9a\u0dca\u200d\u0dbb',
    '\u{1faff}',
    '\u0378',
  ])
    assert.equal(cleanUser(text), text);
});

test('who was here under an older rule can say so', () => {
  for (const text of ['\u2764\ufe0f', '\u3164', 'a\u200bb']) assert.equal(cleanName(text), text);
  for (const text of ['', ' ', 'a'.repeat(65), 'a\nb', '\ud800'])
    assert.equal(cleanName(text), null, JSON.stringify(text));
});

test('what is no frame is ignored', () => {
  for (const bad of ['', '[]', 'null', '3', '{"t":1}', '{', new Uint8Array(1), undefined])
    assert.equal(parseFrame(bad), null);
  assert.deepEqual(parseFrame('{"t":"x","y":1}'), { t: 'x', y: 1 });
});

test('back-off: full jitter below a doubling ceiling; what the server names is kept to, and has the jitter on top in a row', () => {
  const backoff = new Backoff(() => 0.999999);
  const delays = Array.from({ length: 9 }, () => backoff.next(true));
  assert.deepEqual(delays, [249, 499, 999, 1999, 3999, 7999, 15999, BACKOFF_MAX_MS - 1, BACKOFF_MAX_MS - 1]);
  backoff.tries = 0;
  assert.equal(backoff.next(false), 499);
  backoff.tries = 0;
  assert.deepEqual([backoff.next(true, 2000), backoff.next(true, 2000), backoff.next(true)], [2000, 2499, 999]);
  assert.equal(new Backoff(() => 0).next(true), 0);
});

test('an unknown close code is a lost connection', () => {
  assert.equal(afterClose(4999)[0], 'again');
  assert.equal(afterClose(4004)[0], 'end');
});

test('fitting keeps the head of a list within the bytes of its JSON', () => {
  const list = Array.from({ length: 100 }, (_, i) => `user😀${i}`);
  const kept = fitting(list, 300);
  assert.ok(kept.length > 10 && bodyBytes(JSON.stringify(kept)) <= 300);
  assert.ok(bodyBytes(JSON.stringify(list.slice(0, kept.length + 1))) > 300);
});
