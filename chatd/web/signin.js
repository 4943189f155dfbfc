/**
 * Who the user is, and tokens for it. In development mode the server gives a token for a name (`GET /dev/token`); elsewhere it answers
 * 404 and the user pastes one.
 *
 * No DOM; `fetch` is injected.
 */

/** The header keeps other sites' pages from asking: they cannot set it without the server's leave. */
const HEADERS = Object.freeze({ 'X-Chatd-Dev': '1' });
/** A name to find out by whether names are given out at all. */
const PROBE = 'me';

export class SignIn {
  /** @param {{fetch: (url: string, init: any) => Promise<any>}} parts */
  constructor({ fetch }) {
    this.fetch = fetch;
    this.leave();
  }

  leave() {
    /** @type {string|null} */
    this.name = null;
    /** @type {string|null} a token that the user brought */
    this.pasted = null;
    /** @type {string|null} a token that the server gave */
    this.given = null;
    /** @type {string|null} the pasted token that was used last */
    this.used = null;
  }

  get isNamed() {
    return this.name !== null;
  }

  /** What this server wants. @returns {Promise<'name'|'token'>} */
  async mode() {
    try {
      return (await this.#ask(PROBE)).status === 404 ? 'token' : 'name';
    } catch {
      return 'name';
    }
  }

  /**
   * `fault` null: go on and connect.
   * @param {{name?: string, token?: string}} who  @returns {Promise<{fault: string|null, mode: 'name'|'token'}>}
   */
  async enter({ name, token }) {
    this.leave();
    if (token !== undefined) {
      this.pasted = token;
      return { fault: null, mode: 'token' };
    }
    try {
      const { status, body } = await this.#ask(name ?? '');
      if (status === 404) return { fault: '', mode: 'token' };
      if (status !== 200) return { fault: body.error ?? `The server answered ${status}.`, mode: 'name' };
      this.name = body.user;
      this.given = body.token;
      return { fault: null, mode: 'name' };
    } catch {
      return { fault: 'The server does not answer. Is it running?', mode: 'name' };
    }
  }

  /** For client.js: see `token` there. @param {string|null} renew  @returns {Promise<string|null>} */
  async token(renew) {
    if (this.name === null) {
      if (renew !== null && this.used === this.pasted) return null;
      this.used = this.pasted;
      return this.pasted;
    }
    if (renew === null && this.given !== null) return this.given;
    const { status, body } = await this.#ask(this.name);
    if (status === 404 || status === 400) return null;
    if (status !== 200) throw new Error(`no token: ${status}`);
    this.given = body.token;
    return body.token;
  }

  /** @param {string} name */
  async #ask(name) {
    const reply = await this.fetch(`/dev/token?user=${encodeURIComponent(name)}`, { headers: HEADERS, cache: 'no-store' });
    return { status: reply.status, body: await reply.json().catch(() => ({})) };
  }
}
