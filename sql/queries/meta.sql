-- What is the same for all nodes of the database.
SELECT epoch, partition_s FROM meta
