/** All that an application without React can import: what size-limit weighs as a whole. */
export * from '../dist/browser.js';
export * from '../dist/core.js';
export * from '../dist/index.js';
export * from '../dist/indexeddb.js';
export * from '../dist/store.js';
export * from '../dist/tabs.js';
