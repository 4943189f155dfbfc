/**
 * The newest message of each row in sight of which nothing is held. A few at a time, because the server answers few
 * reads of one connection at once; what goes out of sight before its turn is not asked for.
 */

import { type ChatClient, ChatError } from '@chatd/client';

const LOADS_MAX = 3;
const PAUSE_MS = 1000;

export class Previews {
  readonly #client: ChatClient;
  #wanted: readonly string[] = [];
  readonly #loading = new Set<string>();
  /** For good, by an error that no other try can heal. */
  readonly #refused = new Set<string>();
  #isPaused = false;

  constructor(client: ChatClient) {
    this.#client = client;
  }

  /** These are in sight and blank, the most important first. Idempotent. */
  want(peers: readonly string[]): void {
    this.#wanted = peers;
    this.#next();
  }

  #next(): void {
    if (this.#isPaused || this.#client.stores.line.getSnapshot().state !== 'online') return;
    for (const peer of this.#wanted) {
      if (this.#loading.size >= LOADS_MAX) return;
      if (!this.#loading.has(peer) && !this.#refused.has(peer) && this.#isBlank(peer)) void this.#load(peer);
    }
  }

  #isBlank(peer: string): boolean {
    return this.#client.stores.conversations.getSnapshot().some((one) => one.peer === peer && one.isBlank);
  }

  async #load(peer: string): Promise<void> {
    this.#loading.add(peer);
    try {
      await this.#client.load(peer, 'preview');
      // Another page of the same conversation may have been on its way, and that was waited for.
      if (this.#isBlank(peer)) this.#pause(0);
    } catch (error) {
      const { code, retryMs } = error instanceof ChatError ? error : { code: 'unknown', retryMs: null };
      if (retryMs !== null) this.#pause(retryMs);
      else if (code !== 'disconnected') this.#refused.add(peer);
    }
    this.#loading.delete(peer);
    this.#next();
  }

  #pause(ms: number): void {
    this.#isPaused = true;
    setTimeout(
      () => {
        this.#isPaused = false;
        this.#next();
      },
      Math.max(PAUSE_MS, ms),
    );
  }
}
