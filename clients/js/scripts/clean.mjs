/** Makes a folder of this package empty, so that nothing of an earlier source is packed. */
import { mkdirSync, rmSync } from 'node:fs';

const folder = new URL(`../${process.argv[2]}`, import.meta.url);
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder);
