/**
 * The page as one script and one style sheet, each named by its content, in `web/dist`.
 *
 * The page is written for React and runs on Preact. The SDK is taken from its sources, so nothing has to be built first.
 */
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const sdk = at('../clients/js/src');

export default defineConfig({
  base: './', // a proxy may strip a prefix
  resolve: {
    alias: [
      { find: /^@chatd\/client$/, replacement: `${sdk}/index.ts` },
      { find: /^@chatd\/client\/(.*)$/, replacement: `${sdk}/$1.ts` },
      { find: /^react\/jsx-runtime$/, replacement: 'preact/jsx-runtime' },
      { find: /^react-dom\/client$/, replacement: 'preact/compat/client' },
      { find: /^react(-dom)?$/, replacement: 'preact/compat' },
    ],
  },
  build: {
    outDir: at('dist'), // not chatd/web: docs/decisions/0052 tells what it still lacks
    target: 'es2022',
    modulePreload: { polyfill: false },
    cssCodeSplit: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      output: { entryFileNames: '[name]-[hash].js', assetFileNames: '[name]-[hash][extname]', codeSplitting: false },
    },
  },
});
