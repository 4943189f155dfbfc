// The application of docs/guides/react.md, rendered.
//
//     node render.mjs    beside the compiled app.js; prints what it saw
import { createElement } from 'react';
import { chatd, client, render, shows, type, until, window } from './stage.mjs';

const { App } = await import('./app.js');

const submit = (form) => form.dispatchEvent(new window.Event('submit', { bubbles: true, cancelable: true }));

await render(createElement(App, { client }));
submit(type('  ').form);
submit(type(' carol ').form);
await until(() => document.querySelector('h2')?.textContent.includes('carol'));
submit(type('hello carol', 'section input').form);
await shows('alice: hello carol sent');
await until(() => document.querySelector('li button')?.textContent.includes('carol'));

chatd.say('bob', 'alice', 'hello alice');
await shows('bob 1');
[...document.querySelectorAll('li button')].find((row) => row.textContent.includes('bob')).click();
await shows('bob: hello alice');

submit(type('hello bob', 'section input').form);
await shows('alice: hello bob sent');
console.log('bob wrote, alice answered');
process.exit(0);
