/**
 * The page as one script and one style sheet, each named by its content (scripts/build.mjs).
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
    target: 'es2022',
    modulePreload: { polyfill: false },
    cssCodeSplit: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      output: {
        // All in this folder is named by its content: chatd and worker.js keep it for ever.
        entryFileNames: 'assets/[name]-[hash].js',
        assetFileNames: 'assets/[name]-[hash][extname]',
        codeSplitting: false,
      },
    },
  },
});
