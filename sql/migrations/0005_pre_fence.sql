-- A batch says which log it was made for (sql/functions/append.sql), and meta which log its epoch was made for.

-- identity: the log_identity() that `epoch` was made for; null until a node has written it. Where it differs from
-- log_identity(), the log has moved.
ALTER TABLE meta ADD COLUMN identity text;
