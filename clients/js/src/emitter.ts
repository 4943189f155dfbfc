/** Who listens to what. A listener that throws hurts nobody else: what it threw goes to `error`. */

export class Emitter<Events extends object> {
  readonly #listeners = new Map<keyof Events, Set<{ fn: (value: never) => void }>>();

  /** Returns its unsubscriber. */
  on<K extends keyof Events>(event: K, fn: (value: Events[K]) => void): () => void {
    const one = { fn };
    const all = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, all.add(one));
    return () => void all.delete(one);
  }

  emit<K extends keyof Events>(event: K, value: Events[K]): void {
    for (const { fn } of [...(this.#listeners.get(event) ?? [])]) {
      try {
        (fn as (value: Events[K]) => void)(value);
      } catch (error) {
        this.failed(error, event === 'error');
      }
    }
  }

  /** An error of the application: to its `error` listeners, or where the platform shows such things. */
  failed(error: unknown, isInError = false): void {
    if (!isInError && this.#listeners.get('error' as keyof Events)?.size) {
      this.emit('error' as keyof Events, error as Events[keyof Events]);
      // biome-ignore lint/suspicious/noConsole: the last resort, where nobody listens
    } else (globalThis.reportError ?? globalThis.console.error)(error);
  }
}
