-- The floors of those conversations of $1 that have lost entries to retention.
SELECT v.id, v.floor FROM conversations v WHERE v.id = ANY ($1::bigint[]) AND v.floor > 1
