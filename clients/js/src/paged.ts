/**
 * What the server gives in pages: `await` it for one page, or iterate over all that there is. Nothing is asked before.
 */

export interface Paged<T, Page> extends PromiseLike<Page>, AsyncIterable<T> {}

/**
 * `first` asks for the first page; `next` for the one after a page, or is null at the end.
 * `listOf` gives the items of a page.
 */
export function paged<T, Page>(
  first: () => Promise<Page>,
  listOf: (page: Page) => readonly T[],
  next: (page: Page) => (() => Promise<Page>) | null,
): Paged<T, Page> {
  return {
    // biome-ignore lint/suspicious/noThenProperty: it is a promise of its first page
    then: (resolved, rejected) => first().then(resolved, rejected),
    async *[Symbol.asyncIterator]() {
      for (let ask: (() => Promise<Page>) | null = first; ask; ) {
        const page: Page = await ask();
        yield* listOf(page);
        ask = next(page);
      }
    },
  };
}
