/** Checks an AsyncAPI document by the parser of the project that made the format. */
import { readFileSync } from 'node:fs';
import { Parser } from '@asyncapi/parser';

const ERROR = 0;
const WARNING = 1;
const { diagnostics } = await new Parser().parse(readFileSync(process.argv[2], 'utf8'));
const problems = diagnostics.filter(({ severity }) => severity === ERROR || severity === WARNING);
for (const { code, message, path } of problems) process.stdout.write(`${code}: ${message} (${path.join('.')})\n`);
process.exit(problems.length ? 1 : 0);
