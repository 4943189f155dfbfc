-- transactional: false
-- A page of a user's conversations reads a page of an index.
-- depends: 0024_pre_append_short

-- conversations_pair has those of side a in the order of the other's name; this one has those of side b so, and nodes of the release before use it as
-- they used conversations_b. Nothing that a send changes: all updates stay HOT, and a new conversation writes as many indexes as before.
-- What an interrupted try left is not valid, and is made again.
DROP INDEX IF EXISTS conversations_b_a;
CREATE INDEX CONCURRENTLY conversations_b_a ON conversations (b, a) WHERE a <> b;
DROP INDEX IF EXISTS conversations_b;
