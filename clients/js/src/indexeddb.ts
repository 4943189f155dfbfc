/** A store in IndexedDB: cursors, mark, epoch, outbox and recent messages outlive a reload. */
export {};
