/** Compresses what was built, as far as that helps: chatd serves the files as they are. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const folder = new URL('../dist/', import.meta.url);
for (const name of readdirSync(folder).filter((one) => /\.(?:html|js|css|svg|webmanifest)$/.test(one))) {
  const plain = readFileSync(new URL(name, folder));
  const brotli = brotliCompressSync(plain, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } });
  const gzip = gzipSync(plain, { level: 9 });
  if (brotli.length < plain.length) writeFileSync(new URL(`${name}.br`, folder), brotli);
  if (gzip.length < plain.length) writeFileSync(new URL(`${name}.gz`, folder), gzip);
}
