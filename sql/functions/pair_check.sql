-- version: 1
-- What a batch names a conversation's two users by: 28 bits of SHA-256 over both, with a newline
-- between them, which no id has (chatd/core/conversation.py computes the same). STABLE, as convert_to is: an
-- IMMUTABLE function around it is not inlined, and a call costs 2.5 us where the expression costs
-- 0.5.
CREATE OR REPLACE FUNCTION pair_check(a text, b text) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT ('x' || left(encode(sha256(convert_to(a || E'\n' || b, 'UTF8')), 'hex'), 7))::bit(28)::integer
$$;
