/**
 * The fake server against the vectors of the real one. What it does otherwise, an application's test may take for the
 * contract; so it runs all of them, and `BEYOND` names those that it cannot do. That list can only shrink.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { ServerRunner } from './vectors/serverRunner.js';
import { type Fields, Mismatch } from './vectors/values.js';

const FOLDER = new URL('../../../chatd/conformance/vectors/server/', import.meta.url);

/** Why the fake cannot do a vector. */
const FRAMING = "a class like WebSocket has no framing: no bad UTF-8, no fragments, no origin of one's own";
const PARSER = 'JSON.parse takes no raw control characters and no NaN: such a frame is unreadable';
const BEYOND: Readonly<Record<string, string>> = {
  'a foreign origin is refused': FRAMING,
  'invalid UTF-8 closes with 1007': FRAMING,
  'an encoded surrogate is invalid UTF-8': FRAMING,
  'a message may come in fragments, cut inside a character': FRAMING,
  "a fault of one value is answered with the request's id: control characters, numbers beyond any bound": PARSER,
};

const vectors = readdirSync(FOLDER)
  .sort()
  .flatMap((file) => {
    const { settings = {}, vectors: all } = JSON.parse(readFileSync(new URL(file, FOLDER), 'utf8'));
    return all.map((one: Fields) => ({ ...one, settings: { ...settings, ...one.settings }, file }));
  });

const run = ({ settings, steps }: Fields): Promise<void> => new ServerRunner(settings).run(steps);
const isBeyond = ({ name }: Fields): boolean => name in BEYOND;

describe('the fake does as the server', () => {
  test.each(vectors.filter((one) => !isBeyond(one)))('$file: $name', run);
});

describe('what is beyond the fake is not called so for nothing', () => {
  test.each(vectors.filter(isBeyond))('$file: $name', async (vector) => {
    await expect(run(vector)).rejects.toThrow(Mismatch);
  });

  test('its names are vectors', () => {
    const names = vectors.map(({ name }) => name);
    expect(Object.keys(BEYOND).filter((name) => !names.includes(name))).toEqual([]);
  });
});
