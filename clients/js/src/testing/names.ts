/**
 * User ids (section 2 of docs/protocol.md), by the Unicode of the JavaScript engine rather than 18.0.0: what a later
 * Unicode adds is refused here, and joiners are judged by script alone.
 */

const CONTROL = /[\u0000-\u001f\u007f-\u009f]/;
const VISIBLE = /^[\p{L}\p{M}\p{N}\p{P}\p{S} \u200c\u200d]+$/u;
const IGNORABLE = /(?![\u200c\u200d])\p{Default_Ignorable_Code_Point}/u;
const BLANK = /[\u2800\u{13441}\u{13442}\u{16fe4}\u{1d159}]/u;
/** Where a joiner does something: between letters that join, or behind a virama. */
const JOINERS =
  /(?<=\p{Script=Arabic})\u200c(?=\p{Script=Arabic})|(?<=[\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca])[\u200c\u200d]/gu;

/** A name that a server may know from before the rule. */
export function isOldName(name: unknown): name is string {
  if (typeof name !== 'string' || /\p{Surrogate}/u.test(name)) return false;
  const length = [...name].length;
  return length >= 1 && length <= 64 && !CONTROL.test(name) && !name.startsWith(' ') && !name.endsWith(' ');
}

/** A name that somebody new may have. */
export function isNewName(name: string): boolean {
  if (!isOldName(name) || name.normalize('NFC') !== name) return false;
  if (!VISIBLE.test(name) || IGNORABLE.test(name) || BLANK.test(name)) return false;
  return !/[\u200c\u200d]/.test(name.replace(JOINERS, ''));
}
