/**
 * Builds the page into chatd/web, or into the folder that is named, and compresses what is served: chatd sends the files
 * as they are. `npm run build -w web` before a commit that changes web/ or clients/js/src; a test compares.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { build } from 'vite';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const outDir = resolve(process.argv[2] ?? join(root, '..', 'chatd', 'web'));
const COMPRESSED = /\.(?:js|css|svg|webmanifest)$/; // not the document, in which chatd writes; it is one packet

mkdirSync(outDir, { recursive: true });
for (const name of readdirSync(outDir)) {
  if (!name.startsWith('__')) rmSync(join(outDir, name), { recursive: true }); // it is a Python package as well
}
await build({ root, logLevel: 'error', build: { outDir, emptyOutDir: false } });
for (const name of readdirSync(outDir, { recursive: true }).filter((one) => COMPRESSED.test(one))) {
  const plain = readFileSync(join(outDir, name));
  const brotli = brotliCompressSync(plain, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } });
  const gzip = gzipSync(plain, { level: 9 });
  if (brotli.length < plain.length) writeFileSync(join(outDir, `${name}.br`), brotli);
  if (gzip.length < plain.length) writeFileSync(join(outDir, `${name}.gz`), gzip);
}
