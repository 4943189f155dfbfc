/** The parts of the page without DOM, in Node, over the sources. What needs a browser is tests/web/test_page.py. */
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const sdk = fileURLToPath(new URL('../clients/js/src', import.meta.url));

export default defineConfig({
  resolve: {
    alias: [
      { find: /^@chatd\/client$/, replacement: `${sdk}/index.ts` },
      { find: /^@chatd\/client\/(.*)$/, replacement: `${sdk}/$1.ts` },
    ],
  },
  test: { include: ['test/**/*.test.ts'], testTimeout: 20_000 },
});
