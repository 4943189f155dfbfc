/**
 * The values of vectors: what stands for a value in what is sent, and what a pattern takes. The format is
 * docs/conformance.md.
 */

/** JSON, which nobody has looked at yet. */
// biome-ignore lint/suspicious/noExplicitAny: vectors are data of any shape
export type Json = any;

/** One step of a vector, a frame, a pattern. */
export interface Fields {
  [key: string]: Json;
}

/** The other side did something else than the vector says. */
export class Mismatch extends Error {}

const shown = (value: Json): string => String(JSON.stringify(value)).slice(0, 500);

const isObject = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** `{"$word": given}` as `["$word", given]`. */
function wordOf(value: Json): [string, Json] | undefined {
  const entries = isObject(value) ? Object.entries(value) : [];
  const [first] = entries;
  return entries.length === 1 && first?.[0].startsWith('$') === true ? first : undefined;
}

/** A list with its `$spread` laid out. */
export function spread(items: Json[]): Json[] {
  return items.flatMap((item) => {
    if (!isObject(item) || !('$spread' in item)) return [item];
    const what = item.$spread;
    return isObject(what) ? Array(what.$times[1]).fill(what.$times[0]) : what;
  });
}

/** The names of one run: users, cids, and what patterns have stored. */
export class Values {
  readonly stored = new Map<string, Json>();
  readonly #cids = new Map<string, string>();
  readonly #run = crypto.randomUUID().slice(0, 8);
  readonly #token: (user: string, options: Fields) => string;

  constructor(token: (user: string, options: Fields) => string = () => '') {
    this.#token = token;
  }

  /** What stands for a value in something that is sent. */
  value(value: Json): Json {
    if (typeof value === 'string') return this.#text(value);
    if (Array.isArray(value)) return spread(value).map((item) => this.value(item));
    const word = wordOf(value);
    if (word !== undefined) return this.#made(...word);
    if (!isObject(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, this.value(item)]));
  }

  #text(text: string): Json {
    if (text.startsWith('@')) return `${text.slice(1)}-${this.#run}`;
    if (text.startsWith('$')) return this.stored.get(text);
    if (!text.startsWith('#')) return text;
    const cid = this.#cids.get(text) ?? crypto.randomUUID();
    this.#cids.set(text, cid);
    return cid;
  }

  #made(word: string, given: Json): Json {
    switch (word) {
      case '$literal':
        return given;
      case '$add':
        return this.value(given).reduce((sum: number, one: number) => sum + one, 0);
      case '$concat':
        return this.value(given).join('');
      case '$repeat':
        return this.value(given[0]).repeat(given[1]);
      case '$times':
        return Array(given[1]).fill(this.value(given[0]));
      case '$keys':
        return Object.fromEntries(Array.from({ length: given }, (_, n) => [String(n + 1), 0]));
      case '$object':
        return Object.fromEntries(given.map(([key, item]: [Json, Json]) => [this.value(key), this.value(item)]));
      case '$token': {
        const { user, ...options } = this.value(given);
        return this.#token(user, options);
      }
      default:
        throw new Error(`no such value: ${word}`);
    }
  }

  /** Throws Mismatch unless `got` is as the pattern says; stores what it names. */
  match(pattern: Json, got: Json): void {
    const word = wordOf(pattern);
    if (typeof pattern === 'string') this.#matchText(pattern, got);
    else if (Array.isArray(pattern)) this.#matchList(pattern, got);
    else if (word !== undefined) this.#matchWord(...word, got);
    else if (isObject(pattern)) this.#matchObject(pattern, got);
    else if (got !== pattern) throw new Mismatch(`expected ${shown(pattern)}, got ${shown(got)}`);
  }

  /** Whether it would match. */
  matches(pattern: Json, got: Json): boolean {
    try {
      this.match(pattern, got);
      return true;
    } catch (error) {
      if (error instanceof Mismatch) return false;
      throw error;
    }
  }

  #matchList(pattern: Json[], got: Json): void {
    if (!Array.isArray(got) || got.length !== pattern.length)
      throw new Mismatch(`expected ${pattern.length} elements, got ${shown(got)}`);
    pattern.forEach((one, n) => {
      this.match(one, got[n]);
    });
  }

  #matchObject(pattern: Fields, got: Json): void {
    if (!isObject(got)) throw new Mismatch(`expected an object, got ${shown(got)}`);
    for (const [key, item] of Object.entries(pattern)) {
      if (item === '!') {
        if (key in got) throw new Mismatch(`\`${key}\` must be absent: ${shown(got)}`);
      } else if (!(key in got)) throw new Mismatch(`no \`${key}\` in ${shown(got)}`);
      else this.match(item, got[key]);
    }
  }

  #matchText(pattern: string, got: Json): void {
    if (!this.#isText(pattern, got))
      throw new Mismatch(`expected ${pattern} (${shown(this.stored.get(pattern))}), got ${shown(got)}`);
  }

  #isText(pattern: string, got: Json): boolean {
    if (pattern === '*') return true;
    if (pattern === '*int') return Number.isInteger(got);
    if (pattern === '*str') return typeof got === 'string' && got !== '';
    if (pattern === '*true') return got === true;
    if (!pattern.startsWith('$')) return got === this.#text(pattern);
    if (!this.stored.has(pattern)) this.stored.set(pattern, got);
    return JSON.stringify(this.stored.get(pattern)) === JSON.stringify(got);
  }

  #matchWord(word: string, given: Json, got: Json): void {
    const isGood =
      word === '$above' || word === '$below'
        ? Number.isInteger(got) && (word === '$above' ? got > this.value(given) : got < this.value(given))
        : word === '$one_of'
          ? given.some((one: Json) => this.matches(one, got))
          : JSON.stringify(got) === JSON.stringify(this.#made(word, given));
    if (!isGood) throw new Mismatch(`expected ${word} ${shown(given)}, got ${shown(got)}`);
  }
}
