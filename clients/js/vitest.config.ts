/** Tests run in Node, over the sources: nothing needs to be built. */
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: { include: ['test/**/*.test.ts', 'test/**/*.test.tsx'], testTimeout: 20_000 },
});
