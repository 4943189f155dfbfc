/** One connection for all tabs of a browser profile and user. */
export {};
