/** A provider and hooks for React. */
export {};
