/**
 * The application that shows the page in a frame, and gives the tokens of its user (docs/guides/embed.md).
 *
 *      page ──{ type: 'chatd:token?', renew }──► parent          page ◄──{ type: 'chatd:token', token }── parent
 *
 * Only the parent is listened to. Who may be that is the server's setting `embed_origins`, by which the browser shows the
 * page in no other frame (CSP, frame-ancestors). What the page asks holds no secret, so any parent may read it.
 */

const WAIT_MS = 5000;

/** What is used of `window`. */
export interface Framed {
  readonly parent: { postMessage(message: unknown, targetOrigin: string): void };
  addEventListener(name: 'message', heard: (event: MessageEvent) => void, options: { signal: AbortSignal }): void;
}

export class Host {
  readonly #window: Framed;

  constructor(window: Framed) {
    this.#window = window;
  }

  /** Null where the page is in no frame. */
  static of(window: Framed): Host | null {
    return (window.parent as unknown) === window ? null : new Host(window);
  }

  /** A token, or null where the host has none for this user. Rejects where it does not answer. */
  token(renew: string | null): Promise<string | null> {
    return new Promise((resolve, reject) => {
      const ended = new AbortController();
      const timer = setTimeout(() => {
        ended.abort();
        reject(new Error('the host application gives no token'));
      }, WAIT_MS);
      const heard = ({ source, data }: MessageEvent) => {
        if ((source as unknown) !== this.#window.parent || data?.type !== 'chatd:token') return;
        clearTimeout(timer);
        ended.abort();
        resolve(typeof data.token === 'string' && data.token !== '' ? data.token : null);
      };
      this.#window.addEventListener('message', heard, { signal: ended.signal });
      this.#window.parent.postMessage({ type: 'chatd:token?', renew }, '*');
    });
  }
}
