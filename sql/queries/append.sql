-- One batch of a lane; see sql/functions/append.sql. Parameters: the fence, the number of
-- conversations, the flags of all messages, four arrays of messages, seven of changes, the edit
-- window.
SELECT ord, conv, seq, ts, note FROM append(
    $1::text, $2::integer, $3::integer, $4::bigint[], $5::text[]::uuid[], $6::text[], $7::integer[],
    $8::bigint[], $9::smallint[], $10::text[]::uuid[], $11::text[], $12::smallint[], $13::bigint[], $14::integer[], $15::interval)
