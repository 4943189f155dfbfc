/**
 * What of the page itself outlives a reload: who this tab is, what is open in it, and drafts. All of one tab
 * (sessionStorage); messages and what waits are the SDK's.
 *
 * Storage may be full or forbidden: then nothing is kept. It is the user's to edit: what has no sense is passed over.
 */

const DRAFTS_MAX = 50;

export class Keep {
  readonly #area: Storage | null;

  constructor(area: Storage | null) {
    this.#area = area;
  }

  get(what: 'name' | 'token' | 'open'): string | null {
    return this.#read(`chatd.${what}`);
  }

  set(what: 'name' | 'token' | 'open', value: string | null): void {
    this.#write(`chatd.${what}`, value);
  }

  /** Peer -> text. */
  drafts(user: string): Map<string, string> {
    const all = parsed(this.#read(`chatd.drafts/${user}`));
    return new Map(Array.isArray(all) ? all.filter(isPair) : []);
  }

  keepDrafts(user: string, drafts: ReadonlyMap<string, string>): void {
    const some = [...drafts].filter(([, text]) => text !== '').slice(-DRAFTS_MAX);
    this.#write(`chatd.drafts/${user}`, some.length > 0 ? JSON.stringify(some) : null);
  }

  #read(key: string): string | null {
    try {
      return this.#area?.getItem(key) ?? null;
    } catch {
      return null;
    }
  }

  #write(key: string, value: string | null): void {
    try {
      if (value === null) this.#area?.removeItem(key);
      else this.#area?.setItem(key, value);
    } catch {
      // it is not kept, then
    }
  }
}

/** A storage, where it is allowed. */
export function storage(name: 'sessionStorage' | 'localStorage'): Storage | null {
  try {
    return window[name];
  } catch {
    return null;
  }
}

function parsed(text: string | null): unknown {
  try {
    return text === null ? null : JSON.parse(text);
  } catch {
    return null;
  }
}

function isPair(value: unknown): value is [string, string] {
  return Array.isArray(value) && value.length === 2 && value.every((one) => typeof one === 'string') && value[0] !== '';
}
