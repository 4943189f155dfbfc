/**
 * Shows the page offline. What it keeps is the page's own files, never anything of a user.
 *
 * The HTML is asked of the server first, because it names the newest script; a file named by its content is never asked
 * for twice.
 */
const CACHE = 'chatd-page';
const HASHED = 'assets/';
const FILES = ['icon.svg', 'manifest.webmanifest'];
const NAMED = /assets\/[\w.-]+/g;

self.addEventListener('install', (event) => {
  self.skipWaiting();
  event.waitUntil(begin());
});

/** What the first visit got before this was there: the browser still has it. */
async function begin() {
  const cache = await caches.open(CACHE);
  const page = await fetch('./');
  if (!page.ok) throw new Error(`the page: ${page.status}`);
  await cache.put('./', page.clone());
  await cache.addAll([...FILES, ...new Set((await page.text()).match(NAMED))]);
}

self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const own = new URL(self.registration.scope);
  if (request.method !== 'GET' || url.origin !== own.origin || !url.pathname.startsWith(own.pathname)) return;
  const name = url.pathname.slice(own.pathname.length);
  if (name.startsWith(HASHED)) event.respondWith(kept(request));
  else if (name === '' || FILES.includes(name)) event.respondWith(fresh(request, name === ''));
});

async function kept(request) {
  const cache = await caches.open(CACHE);
  return (await cache.match(request)) ?? store(cache, request, await fetch(request));
}

async function fresh(request, isPage) {
  const cache = await caches.open(CACHE);
  try {
    return await store(cache, request, await fetch(request), isPage);
  } catch (error) {
    const had = await cache.match(request, { ignoreSearch: true });
    if (had) return had;
    throw error;
  }
}

/** With a new page the scripts and styles that it does not name go. */
async function store(cache, request, reply, isPage = false) {
  if (!reply.ok) return reply;
  await cache.put(request, reply.clone());
  if (!isPage) return reply;
  const html = await reply.clone().text();
  for (const { url } of await cache.keys()) {
    const name = url.slice(url.lastIndexOf('/') + 1);
    if (url.includes(`/${HASHED}`) && !html.includes(name)) await cache.delete(url);
  }
  return reply;
}
