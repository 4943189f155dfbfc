-- The tables of yoyo-migrations 9.0.0, as it made them when the first migration was applied (pg_dump of 29 November 2026).
CREATE TABLE _yoyo_migration (
    migration_hash varchar(64), migration_id varchar(255), applied_at_utc timestamp, PRIMARY KEY (migration_hash)
);
CREATE TABLE _yoyo_log (
    id varchar(36), migration_hash varchar(64), migration_id varchar(255), operation varchar(10), username varchar(255),
    hostname varchar(255), comment varchar(255), created_at_utc timestamp, PRIMARY KEY (id)
);
CREATE TABLE _yoyo_version (version int NOT NULL PRIMARY KEY, installed_at_utc timestamp);
INSERT INTO _yoyo_version VALUES (2, '2026-11-24 20:11:46');
