/**
 * The page as two scripts and one style sheet, each named by its content (scripts/build.mjs): the sign-in, and the rest,
 * which is loaded while somebody types their name.
 *
 * The page is written for React and runs on Preact. The SDK is taken from its sources, so nothing has to be built first.
 */
import { fileURLToPath } from 'node:url';
import { defineConfig, type Plugin } from 'vite';

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const sdk = at('../clients/js/src');

/** Names the second script in the document, so that worker.js keeps it and lets it go with the page. */
const named: Plugin = {
  name: 'named',
  transformIndexHtml: {
    order: 'post',
    handler: (_, { bundle = {} }) =>
      Object.values(bundle)
        .filter((one) => one.type === 'chunk' && !one.isEntry)
        .map((one) => ({ tag: 'meta', attrs: { name: 'script', content: `./${one.fileName}` }, injectTo: 'head' })),
  },
};

export default defineConfig({
  plugins: [named],
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
        chunkFileNames: 'assets/[name]-[hash].js',
        assetFileNames: 'assets/[name]-[hash][extname]',
      },
    },
  },
});
