-- What all nodes agree on.
SELECT epoch, partition_s FROM meta
