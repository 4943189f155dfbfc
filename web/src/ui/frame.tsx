/** What frames the chat: the banner about the line, short notices, the question, and what a screen reader says aloud. */

import type { ChatClient, Line } from '@chatd/client';
import { useEffect, useLayoutEffect, useRef, useState } from 'react';
import { bannerOf } from '../pure/banner';
import { useCell } from '../state/cell';
import type { Desk } from '../state/desk';

/** A line that is back sooner than this was never away, as far as the user is concerned. */
const BANNER_AFTER_MS = 1500;
const COUNT_MS = 500;

export function LineBanner({ client, line, isFirst }: { client: ChatClient; line: Line; isFirst: boolean }) {
  const banner = bannerOf(line, client.now());
  const [downSince, setDownSince] = useState<number | null>(null);
  const [, count] = useState(0);
  const isDown = banner !== null;
  const isBusy = banner?.kind === 'busy';
  useEffect(() => setDownSince(isDown ? performance.now() : null), [isDown]);
  useEffect(() => {
    if (!isBusy) return;
    const timer = setInterval(() => count((n) => n + 1), COUNT_MS);
    return () => clearInterval(timer);
  }, [isBusy]);
  const isEarly = isBusy && !isFirst && (downSince === null || performance.now() - downSince < BANNER_AFTER_MS);
  const act = () => (banner?.action === 'reload' ? location.reload() : void client.start());
  return (
    <div className={`banner ${banner?.kind ?? ''}`} role="status" hidden={banner === null || isEarly}>
      <span className="spinner" aria-hidden="true" />
      <span>{banner?.text}</span>
      {banner?.action && (
        <button type="button" onClick={act}>
          {banner.label}
        </button>
      )}
    </div>
  );
}

export function Notices({ desk }: { desk: Desk }) {
  return (
    <div className="notices" role="status">
      {useCell(desk.notices).map(({ id, text }) => (
        <p key={id} className="notice">
          {text}
        </p>
      ))}
    </div>
  );
}

export function Spoken({ desk }: { desk: Desk }) {
  return (
    <div className="vh" aria-live="polite">
      <p>{useCell(desk.spoken)}</p>
    </div>
  );
}

/** It is always there, and open while something is asked. */
export function Asking({ desk }: { desk: Desk }) {
  const asked = useCell(desk.question);
  const dialog = useRef<HTMLDialogElement>(null);
  const shown = useRef(asked);
  shown.current = asked ?? shown.current;
  // At once: as it closes it gives the focus back, which may be elsewhere a frame later.
  useLayoutEffect(() => {
    if (asked && !dialog.current?.open) dialog.current?.showModal();
    else if (!asked) dialog.current?.close();
  }, [asked]);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: Escape closes it
    <dialog
      ref={dialog}
      aria-labelledby="question"
      onClick={(event) => event.target === event.currentTarget && desk.answer(false)}
      onCancel={() => desk.answer(false)}
    >
      <p id="question">{shown.current?.text}</p>
      <div className="choices">
        {/* biome-ignore lint/a11y/noAutofocus: the safe answer of a question */}
        <button type="button" autoFocus onClick={() => desk.answer(false)}>
          Cancel
        </button>
        <button type="button" className="danger" onClick={() => desk.answer(true)}>
          {shown.current?.label}
        </button>
      </div>
    </dialog>
  );
}
