/** The first screen: a name in development mode, a token otherwise; in a frame of an application, nothing to type. */

import { cleanName } from '@chatd/client';
import { type FormEvent, useLayoutEffect, useRef, useState } from 'react';
import type { Mode, Who } from '../state/signin';
import { Icon } from './parts';

export interface Asked {
  readonly mode: Mode;
  readonly fault?: string;
  readonly isBusy?: boolean;
  readonly name?: string;
}

export function SignInScreen({ asked, enter }: { asked: Asked; enter: (who: Who) => void }) {
  const { mode, isBusy = false, name = '' } = asked;
  const [typed, setTyped] = useState(name);
  const [wrong, setWrong] = useState<{ at: Asked; fault: string } | null>(null);
  const input = useRef<HTMLInputElement>(null);
  const fault = wrong?.at === asked ? wrong.fault : (asked.fault ?? '');
  const isName = mode === 'name';
  // biome-ignore lint/correctness/useExhaustiveDependencies: asked again, it is to be typed again
  useLayoutEffect(() => {
    if (isBusy) return;
    input.current?.focus();
    input.current?.select();
  }, [asked, isBusy]);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    const text = typed.trim();
    const found = isName ? cleanName(text) : text;
    if (found === null || found === '') {
      const many = 'A name has 1 to 64 printable characters.';
      setWrong({ at: asked, fault: isName ? (text === '' ? 'Type a name first.' : many) : 'Paste a token first.' });
    } else enter(isName ? { name: found } : { token: found });
  };
  return (
    <main className="signin">
      <div className="card">
        <img className="logo" src="icon.svg" alt="" width={56} height={56} />
        <h1>chatd</h1>
        <p className="hint">
          {isName
            ? 'Pick a name and chat. Open a second tab with another name to talk to yourself.'
            : 'Paste the access token of your user. For development, `chatd token NAME` makes one.'}
        </p>
        <form onSubmit={submit}>
          <label htmlFor="who">{isName ? 'Your name' : 'Access token'}</label>
          <input
            ref={input}
            id="who"
            type={isName ? 'text' : 'password'}
            autoComplete={isName ? 'username' : 'off'}
            spellCheck={false}
            autoCapitalize="none"
            maxLength={isName ? 128 : 8192}
            aria-describedby="who-fault"
            aria-invalid={fault !== '' ? 'true' : undefined}
            value={typed}
            onInput={(event) => setTyped(event.currentTarget.value)}
          />
          <p id="who-fault" className="fault-text" role="alert">
            {fault}
          </p>
          <button type="submit" className="primary" disabled={isBusy}>
            {isBusy ? 'One moment…' : 'Start chatting'}
            <Icon name="send" />
          </button>
        </form>
      </div>
    </main>
  );
}

/** Where the host application signs its user in, and that has ended: it can be asked anew. */
export function HostScreen({ asked: { isBusy = false, fault = '' }, again }: { asked: Asked; again: () => void }) {
  return (
    <main className="signin">
      <div className="card">
        <img className="logo" src="icon.svg" alt="" width={56} height={56} />
        <h1>chatd</h1>
        <p className="hint" role="alert">
          {fault}
        </p>
        <button type="button" className="primary" disabled={isBusy} onClick={again}>
          {isBusy ? 'One moment…' : 'Try again'}
        </button>
      </div>
    </main>
  );
}
