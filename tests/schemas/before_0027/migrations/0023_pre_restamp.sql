-- Rows of another cluster's transactions get ids of this one's.
-- depends: 0022_pre_counted

-- Up to which conversation that is done (sql/queries/restamp.sql); null: all are. 0: none, as after a restore, and once for each database now.
ALTER TABLE meta ADD COLUMN restamp bigint DEFAULT 0;
