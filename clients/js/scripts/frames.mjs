/**
 * Writes src/generated/frames.ts: a TypeScript type for each frame of docs/schema. `--check` writes nothing and fails
 * where the file is not current.
 *
 * It knows the part of JSON Schema that docs/schema uses. What only narrows a value (patterns, bounds, if/then) has no
 * type in TypeScript and is left out by name; a keyword that is in neither list ends the script.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';

const SCHEMAS = new URL('../../../docs/schema/', import.meta.url);
const TARGET = new URL('../src/generated/frames.ts', import.meta.url);

const NARROWING = new Set([
  '$schema',
  'title',
  'description',
  'minimum',
  'maximum',
  'minLength',
  'maxLength',
  'pattern',
  'minItems',
  'maxItems',
  'maxProperties',
  'if',
  'then',
  'else',
  'not',
  'dependentRequired',
]);
const TYPED = new Set([
  'type',
  'const',
  'enum',
  '$ref',
  'anyOf',
  'oneOf',
  'allOf',
  'properties',
  'required',
  'items',
  'additionalProperties',
]);
const SIMPLE = { string: 'string', integer: 'number', boolean: 'boolean', null: 'null' };

const read = (path) => JSON.parse(readFileSync(new URL(path, SCHEMAS), 'utf8'));
const pascal = (name) => name.replace(/(?:^|_)(\w)/g, (_, letter) => letter.toUpperCase());
const capital = (text) => (text.startsWith('chatd') ? text : `${text[0].toUpperCase()}${text.slice(1)}`);
const comment = (text) => (text === undefined ? '' : `/** ${capital(text)}. */\n`);

/** The type of one schema. */
function typeOf(schema) {
  const unknown = Object.keys(schema).filter((key) => !NARROWING.has(key) && !TYPED.has(key));
  if (unknown.length > 0) throw new Error(`this script does not know ${unknown}: ${JSON.stringify(schema)}`);
  const parts = [];
  if (schema.$ref !== undefined) parts.push(pascal(schema.$ref.split('/').at(-1)));
  if (schema.const !== undefined) parts.push(JSON.stringify(schema.const));
  if (schema.items !== undefined) parts.push(`Array<${typeOf(schema.items)}>`);
  if (schema.properties !== undefined) parts.push(objectOf(schema));
  if (schema.additionalProperties !== undefined)
    parts.push(`{ [key: string]: ${typeOf(schema.additionalProperties)} }`);
  parts.push(...(schema.allOf ?? []).map(typeOf).filter((part) => part !== 'unknown'));
  const choices = schema.enum?.map((value) => JSON.stringify(value)) ?? (schema.anyOf ?? schema.oneOf)?.map(typeOf);
  if (choices !== undefined) parts.push(parts.length > 0 ? `(${choices.join(' | ')})` : choices.join(' | '));
  return parts.length > 0 ? parts.join(' & ') : (SIMPLE[schema.type] ?? 'unknown');
}

function objectOf({ properties, required = [] }) {
  const rows = Object.entries(properties).map(([key, schema]) => {
    const optional = required.includes(key) ? '' : '?';
    return `${comment(schema.description)}${key}${optional}: ${typeOf(schema)};`;
  });
  return `{\n${rows.join('\n').replace(/^/gm, '  ')}\n}`;
}

const declared = (name, schema, about) => `${comment(about)}export type ${name} = ${typeOf(schema)};\n`;

/** All frames of one side, and their union. */
function side(folder, suffix, whole, about) {
  const files = readdirSync(new URL(`${folder}/`, SCHEMAS)).sort();
  const frames = files.map((file) => {
    const name = file.replace('.json', '');
    return [`${pascal(name)}${name.startsWith('ok') ? '' : suffix}`, read(`${folder}/${file}`)];
  });
  const all = `${comment(about)}export type ${whole} =\n${frames.map(([name]) => `  | ${name}`).join('\n')};\n`;
  return [...frames.map(([name, schema]) => declared(name, schema, schema.title)), all];
}

const defs = Object.entries(read('defs.json').$defs);
const text = [
  '/** The frames of chatd.v1. Written by scripts/frames.mjs from docs/schema: change those, then `npm run frames`. */\n',
  ...defs.map(([name, schema]) => declared(pascal(name), schema, schema.description ?? `\`${name}\` in a frame`)),
  ...side('client', 'Request', 'Request', 'whatever a client sends'),
  ...side('server', 'Frame', 'ServerFrame', 'whatever a server of chatd.v1 sends; a later one may send more'),
].join('\n');

if (!process.argv.includes('--check')) writeFileSync(TARGET, text);
else if (readFileSync(TARGET, 'utf8') !== text) {
  console.error('src/generated/frames.ts is not what docs/schema says: run `npm run frames -w clients/js`');
  process.exit(1);
}
