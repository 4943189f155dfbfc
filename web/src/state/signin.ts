/**
 * Who the user is, and tokens for it. In a frame the host application gives them (host.ts). In development mode the server
 * gives a token for a name (`dev/token`); elsewhere it answers 404 and the user pastes one. Which of the two it is, chatd
 * writes into the document (chatd/net/pages.py).
 */

import type { Host } from './host';

/** The header keeps other sites' pages from asking: they cannot set it without the server's leave. */
const HEADERS = { 'X-Chatd-Dev': '1' };

/** How somebody signs in: by a name, by a token, or by the host application, where nothing can be typed. */
export type Mode = 'name' | 'token' | 'host';
/** Who somebody says they are. */
export type Who = { readonly name: string } | { readonly token: string };
type Fetch = (url: string, init: RequestInit) => Promise<Response>;

export class SignIn {
  /** What this server wants. */
  readonly mode: Mode;
  readonly #fetch: Fetch;
  #name: string | null = null;
  #host: Host | null = null;
  /** A token that the user brought, the one that the server gave, and the brought one that was used last. */
  #pasted: string | null = null;
  #given: string | null = null;
  #used: string | null = null;

  /** `told`: the mode, as chatd has written it into the document. */
  constructor(fetch: Fetch, told: string | undefined) {
    this.#fetch = fetch;
    this.mode = told === 'token' ? told : 'name';
  }

  leave(): void {
    this.#name = this.#pasted = this.#given = this.#used = this.#host = null;
  }

  /** By what the user of now is known. */
  get known(): Mode {
    return this.#host !== null ? 'host' : this.#name !== null ? 'name' : 'token';
  }

  /** Goes on as somebody who was let in before, without a question to the server. Gives the user. */
  resume(who: Who): string {
    this.leave();
    if ('name' in who) {
      this.#name = who.name;
      return who.name;
    }
    this.#pasted = who.token;
    return subject(who.token);
  }

  /** Goes on as the host's user, with its first token. Gives the user. */
  embedded(host: Host, token: string): string {
    this.leave();
    this.#host = host;
    this.#given = token;
    return subject(token);
  }

  /** `fault` null: go on as `user`. */
  async enter(who: Who): Promise<{ fault: string | null; mode: Mode; user: string }> {
    if ('token' in who) return { fault: null, mode: 'token', user: this.resume(who) };
    this.leave();
    try {
      const { status, body } = await this.#ask(who.name);
      if (status === 404) return { fault: '', mode: 'token', user: '' };
      if (status !== 200) {
        return { fault: text(body.error) ?? `The server answered ${status}.`, mode: 'name', user: '' };
      }
      this.#name = text(body.user) ?? who.name;
      this.#given = text(body.token);
      return { fault: null, mode: 'name', user: this.#name };
    } catch {
      return { fault: 'The server does not answer. Is it running?', mode: 'name', user: '' };
    }
  }

  /** For the client: its token provider. */
  async token(renew: string | null): Promise<string | null> {
    if (this.#host !== null) {
      if (renew !== null || this.#given === null) this.#given = await this.#host.token(renew);
      return this.#given;
    }
    if (this.#name === null) {
      if (renew !== null && this.#used === this.#pasted) return null;
      this.#used = this.#pasted;
      return this.#pasted;
    }
    if (renew === null && this.#given !== null) return this.#given;
    const { status, body } = await this.#ask(this.#name);
    if (status === 404 || status === 400) return null;
    if (status !== 200) throw new Error(`no token: ${status}`);
    this.#given = text(body.token);
    return this.#given;
  }

  async #ask(name: string): Promise<{ status: number; body: Record<string, unknown> }> {
    const reply = await this.#fetch(`dev/token?user=${encodeURIComponent(name)}`, {
      headers: HEADERS,
      cache: 'no-store',
    });
    return { status: reply.status, body: await reply.json().catch(() => ({})) };
  }
}

/** Whom a token names. Nobody is let in by that: it tells whose cache to show until the server has spoken. */
function subject(token: string): string {
  try {
    const claims = token.split('.')[1] ?? '';
    const bytes = Uint8Array.from(atob(claims.replace(/-/g, '+').replace(/_/g, '/')), (char) => char.charCodeAt(0));
    return text(JSON.parse(new TextDecoder().decode(bytes)).sub) ?? '';
  } catch {
    return '';
  }
}

function text(value: unknown): string | null {
  return typeof value === 'string' ? value : null;
}
