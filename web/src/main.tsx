/** Draws the page. */

import './style.css';
import { createRoot } from 'react-dom/client';
import { App, Page } from './ui/app';

const root = document.getElementById('app') as HTMLElement;
root.replaceChildren(); // the skeleton
createRoot(root).render(<App page={new Page()} />);
if ('serviceWorker' in navigator) navigator.serviceWorker.register('worker.js').catch(() => {}); // it is there on https only
