-- A mark tells whose cursors moved.
-- depends: 0025_pre_conversations_of_b

-- a_xid, b_xid: the last transaction that moved the cursors of that side, 0: none has; xid: that wrote the row. Until both have sent, a hello lists a
-- conversation for one's own moves alone: the other's would tell a stranger when somebody is there and reads (sql/queries/list_changed.sql).
-- Null where no node of this release has written the row yet: then xid counts. A node of the release before leaves them as they are, so of what it
-- moves in such a conversation the user's other devices learn by its receipt, or with the next change, and not by a mark. Not indexed: updates stay HOT.
ALTER TABLE cursors ADD COLUMN a_xid xid8, ADD COLUMN b_xid xid8;
