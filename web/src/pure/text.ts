/** What a text is: to be seen at all, from right to left, a few emoji, too long to show whole, with links in it. Pure. */

/** More lines, or more characters, are folded until asked for. */
const LINES_SHOWN = 24;
const CHARS_SHOWN = 1400;
const JUMBO_CHARS_MAX = 3;
const EMOJI = /^(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\p{Regional_Indicator}|[\ufe0f\u200d])+$/u;
/** A message that begins in a script from right to left is laid out so as a whole. */
const RTL = /^[^\p{L}]*[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;
/** Something that leaves ink. Marks alone do: they are drawn on a dotted circle. */
const SEEN = /[^\p{C}\p{Z}\p{DI}\s\u2800]/u;
const LINK = /\bhttps?:\/\/[^\s<>"`\p{C}\p{DI}]+/giu;
/** At the end of a link it belongs to the sentence. */
const AFTER_LINK = /[.,;:!?'*_~…]+$/u;

export function isSeen(text: string): boolean {
  return SEEN.test(text);
}

export function isRightToLeft(text: string): boolean {
  return RTL.test(text);
}

export function isJumbo(text: string): boolean {
  if (text.length > 32 || !EMOJI.test(text) || !/\p{Emoji_Presentation}|\ufe0f/u.test(text)) return false;
  return graphemes(text) <= JUMBO_CHARS_MAX;
}

export function isLong(text: string): boolean {
  if (text.length > CHARS_SHOWN) return true;
  let lines = 1;
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) lines += 1;
  return lines > LINES_SHOWN;
}

/** Characters as a reader counts them. */
export function graphemes(text: string): number {
  return typeof Intl.Segmenter === 'function' ? [...new Intl.Segmenter().segment(text)].length : [...text].length;
}

/** A piece of a text; `href` where it is a link. */
export interface Piece {
  text: string;
  href: string | null;
}

/** The text in pieces, in order. Links are http and https only, and shown as they were typed. */
export function pieces(text: string): Piece[] {
  const out: Piece[] = [];
  let from = 0;
  for (const { 0: found, index } of text.matchAll(LINK)) {
    const link = trimmed(found);
    if (!isUrl(link)) continue;
    if (index > from) out.push({ text: text.slice(from, index), href: null });
    out.push({ text: link, href: link });
    from = index + link.length;
  }
  if (from < text.length) out.push({ text: text.slice(from), href: null });
  return out;
}

/** Without what follows it: punctuation, and brackets that were opened before it. */
function trimmed(link: string): string {
  for (let rest = link; ; ) {
    const cut = rest.replace(AFTER_LINK, '');
    const isOpened = (open: string, close: string) =>
      cut.endsWith(close) && cut.split(close).length > cut.split(open).length;
    const isOver = isOpened('(', ')') || isOpened('[', ']') || isOpened('{', '}');
    const next = isOver ? cut.slice(0, -1) : cut;
    if (next === rest) return next;
    rest = next;
  }
}

function isUrl(link: string): boolean {
  try {
    return new URL(link).hostname !== '';
  } catch {
    return false;
  }
}

/** How much more may be typed, in characters like those that are there; below 0: how many have to go. */
export function charactersLeft(text: string, bytesMax: number, bytesOf: (text: string) => number): number {
  const bytes = bytesOf(text);
  if (bytes <= bytesMax) return Math.floor((bytesMax - bytes) / Math.max(1, bytes / Math.max(1, graphemes(text))));
  let over = bytes - bytesMax;
  let count = 0;
  const parts = typeof Intl.Segmenter === 'function' ? [...new Intl.Segmenter().segment(text)] : [];
  const all = parts.length > 0 ? parts.map(({ segment }) => segment) : [...text];
  while (over > 0 && all.length > 0) {
    over -= bytesOf(all.pop() ?? '');
    count -= 1;
  }
  return count;
}
