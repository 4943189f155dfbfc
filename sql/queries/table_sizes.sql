-- What a pass over all conversations costs, and what an average user has: the bytes of both tables
-- (measured now), conversations and users (as last analysed, -1: never).
SELECT (pg_relation_size('conversations') + pg_relation_size('cursors'))::bigint,
    (SELECT c.reltuples FROM pg_class c WHERE c.oid = 'conversations'::regclass)::double precision,
    (SELECT c.reltuples FROM pg_class c WHERE c.oid = 'users'::regclass)::double precision
