/** What a text is. */

import { expect, test } from 'vitest';
import { charactersLeft, graphemes, isJumbo, isLong, isRightToLeft, isSeen, pieces } from '../src/pure/text';

const bytes = (text: string) => new TextEncoder().encode(text).length;

test('a few emoji stand large, other text does not', () => {
  for (const body of ['👍', '👩‍👩‍👧‍👦', '🇩🇪🇫🇷', '❤️', '👍🏽👍🏽👍🏽']) expect(isJumbo(body), body).toBe(true);
  for (const body of ['1', '#', '123', '👍👍👍👍', '👍 ok', '©', '']) expect(isJumbo(body), body).toBe(false);
});

test('many lines, or one long line, are folded', () => {
  expect([isLong('x\n'.repeat(40)), isLong('x\n'.repeat(3)), isLong('x'.repeat(2_048))]).toEqual([true, false, true]);
});

test('what leaves no ink is not seen', () => {
  for (const body of ['\u200b', '\u2060', '\u3164', ' \n', '\u2800', '\u00ad'])
    expect(isSeen(body), escape(body)).toBe(false);
  for (const body of ['a', '👍', '\u0301', '\u200bx']) expect(isSeen(body)).toBe(true);
});

test('a message that begins in a script from right to left is laid out so', () => {
  expect(['שלום', '12 سلام', '«שלום» hello'].map(isRightToLeft)).toEqual([true, true, true]);
  expect(['hello שלום', '12', ''].map(isRightToLeft)).toEqual([false, false, false]);
});

test('links are http and https alone, without the punctuation of their sentence', () => {
  const links = (text: string) => pieces(text).flatMap(({ href }) => (href === null ? [] : [href]));
  expect(links('see https://a.example/x, and (http://b.example/y_(z)).')).toEqual([
    'https://a.example/x',
    'http://b.example/y_(z)',
  ]);
  expect(links('javascript:alert(1) data:text/html,x ftp://x https:// http://')).toEqual([]);
  expect(links('https://a.example/\u202egpj.exe')).toEqual(['https://a.example/']);
  for (const text of ['', 'plain', 'https://a.example', 'x https://a.example y https://b.example!']) {
    expect(
      pieces(text)
        .map((piece) => piece.text)
        .join(''),
    ).toBe(text);
  }
});

test('characters are counted as a reader counts them, and how many have to go', () => {
  expect([graphemes('👩‍👩‍👧‍👦'), graphemes('e\u0301')]).toEqual([1, 1]);
  expect(charactersLeft('x'.repeat(10), 20, bytes)).toBe(10);
  expect(charactersLeft('ä'.repeat(5), 20, bytes)).toBe(5);
  expect(charactersLeft('x'.repeat(25), 20, bytes)).toBe(-5);
  expect(charactersLeft(`${'x'.repeat(18)}👍`, 20, bytes)).toBe(-1);
});
