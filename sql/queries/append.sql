-- One batch of a lane; see the function in sql/migrations. Parameters: four arrays of messages, seven of changes, the edit window, the fence, the number
-- of conversations.
SELECT ord, conv, seq, ts, note FROM append(
    $1::bigint[], $2::text[]::uuid[], $3::text[], $4::integer[],
    $5::bigint[], $6::smallint[], $7::text[]::uuid[], $8::text[], $9::smallint[], $10::bigint[], $11::integer[],
    $12::interval, $13::text, $14::integer)
