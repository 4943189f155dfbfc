-- Unread counts what can still be read.

-- a_gone, b_gone: messages of each side below `floor`. Retention raises them with the floor (raise_floors), in the same update. Unread is the peer's
-- na or nb minus the larger of what was read and what is gone. Floors that were raised before stay at 0 until the next one of that conversation is
-- raised; where nothing at all is left (floor > head) the node needs no number.
-- Nothing that a send changes, and not indexed: all updates stay HOT. A constant default rewrites nothing.
ALTER TABLE conversations ADD COLUMN a_gone integer NOT NULL DEFAULT 0, ADD COLUMN b_gone integer NOT NULL DEFAULT 0;
