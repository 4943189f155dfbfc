/** The client of chatd. Exports what an application needs; importing it does nothing. */
export {};
