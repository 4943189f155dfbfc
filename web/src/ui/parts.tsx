/** Small parts of the screens: icons, buttons that show one, faces. */

import type { ReactNode } from 'react';

/** Paths on a grid of 24. */
const ICONS = {
  send: 'M3.5 20.5 21 12 3.5 3.5 3.5 10l11 2-11 2z',
  back: 'M15 4 7 12l8 8',
  edit: 'M4 20l1-4.5L16 4.5l3.5 3.5L8.5 19z M13.5 7l3.5 3.5',
  trash: 'M4.5 7h15 M9.5 7V4.5h5V7 M6.5 7l.8 12.5h9.4L17.5 7 M10.2 10.5v5.5 M13.8 10.5v5.5',
  copy: 'M9 8.5h10.5V20H9z M14.5 8.5V4H4v11.5h5',
  close: 'M6 6l12 12 M18 6 6 18',
  down: 'M5 9l7 7 7-7',
  search: 'M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13z M15.3 15.3 20 20',
  leave: 'M14 4h5v16h-5 M4 12h11 M11 8l4 4-4 4',
  bell: 'M6.5 16.5V11a5.5 5.5 0 0 1 11 0v5.5l1.5 1.5H5z M10 20.5h4',
  silent: 'M6.5 16.5V11a5.5 5.5 0 0 1 11 0v5.5l1.5 1.5H5z M10 20.5h4 M4 4l16 16',
  note: 'M6 3.5h12v17l-6-4-6 4z',
  sending: 'M12 4a8 8 0 1 1 0 16 8 8 0 0 1 0-16z M12 8v4.3l2.8 1.7',
  failed: 'M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z M12 7.8v5 M12 15.6v.6',
  sent: 'M5 12.5l4.5 4.5L19 7.5',
  both: 'M2 12.5l4.5 4.5L16 7.5 M11.6 16.4l.6.6L21.7 7.5',
  chat: 'M6 5h12a2.5 2.5 0 0 1 2.5 2.5v7A2.5 2.5 0 0 1 18 17h-6.5L7 20.5V17H6a2.5 2.5 0 0 1-2.5-2.5v-7A2.5 2.5 0 0 1 6 5z',
} as const;

export type IconName = keyof typeof ICONS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg viewBox="0 0 24 24" className={`icon icon-${name}`} aria-hidden="true">
      <path d={ICONS[name]} />
    </svg>
  );
}

interface IconButtonProps {
  icon: IconName;
  label: string;
  act: () => void;
  kind?: string;
  isDisabled?: boolean;
  pressed?: boolean;
  children?: ReactNode;
}

/** A button that shows an icon and says `label`. */
export function IconButton({
  icon,
  label,
  act,
  kind = 'plain',
  isDisabled = false,
  pressed,
  children,
}: IconButtonProps) {
  return (
    <button
      type="button"
      className={`icon-button ${kind}`}
      aria-label={label}
      title={label}
      aria-pressed={pressed}
      disabled={isDisabled}
      onClick={act}
    >
      <Icon name={icon} />
      {children}
    </button>
  );
}

/** A round sign for a user: the first letter on a colour of its own. */
export function Face({ user, isSelf = false, state }: { user: string; isSelf?: boolean; state?: string | undefined }) {
  return (
    <span className="portrait">
      <span className={`avatar hue-${hue(user)}`} aria-hidden="true">
        {isSelf ? <Icon name="note" /> : initial(user)}
      </span>
      {state !== undefined && <span className={`dot ${state}`} />}
    </span>
  );
}

function initial(user: string): string {
  const [first = '?'] = user.match(/[\p{L}\p{N}]/u) ?? [...user];
  return first.toLocaleUpperCase();
}

function hue(user: string): number {
  let sum = 7;
  for (const char of user) sum = (sum * 31 + (char.codePointAt(0) ?? 0)) % 100003;
  return sum % 12;
}

/** As much as a badge holds. */
export function countOf(count: number): string {
  return count > 99 ? '99+' : String(count);
}
