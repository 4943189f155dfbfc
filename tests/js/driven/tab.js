/** A tab with one driven client. The query says who and where; `globalThis.tell` is the test's, `ask` is for it. */
import { ChatClient } from '@chatd/client';
import { browser } from '@chatd/client/browser';
import { indexedDb } from '@chatd/client/indexeddb';
import { tabs } from '@chatd/client/tabs';
import { drive } from './driven.js';

const TELL_EVERY_MS = 30;

const query = new URLSearchParams(location.search);
const client = new ChatClient({
  url: query.get('url'),
  token: async () => query.get('token'),
  user: query.get('user'),
  store: indexedDb(),
  tabs: tabs(),
  platform: browser(),
});

let news = [];
const flush = () => {
  const told = news;
  news = [];
  void globalThis.tell(performance.timeOrigin, told);
};
// In parcels: a call to the test costs more than a message.
const tell = (event) => {
  if (news.push(event) === 1) setTimeout(flush, TELL_EVERY_MS);
};

globalThis.ask = drive(client, tell, query.get('fault') ?? '');
await client.start();
